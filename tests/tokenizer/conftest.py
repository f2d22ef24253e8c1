"""A Cat tokenizer of a few thousand values, with windows short enough to be left behind."""

from typing import Any

import pytest
import torch

from moss.config.schema import build
from moss.config.tokenizer import CatConfig
from moss.tokenizer.cat import CatModel, CatTokenizer


def small_settings() -> dict[str, Any]:
    """480 samples a frame: 100 Hz, then 50 Hz; windows of 0.2 s are 20 and 10 positions."""

    def stage(inputs: int, outputs: int, hidden: int) -> dict[str, Any]:
        return {
            "kind": "transformer",
            "input_size": inputs,
            "output_size": outputs,
            "hidden_size": hidden,
            "num_layers": 2,
            "num_heads": 2,
            "intermediate_size": 2 * hidden,
            "context_s": 0.2,
            "layer_scale_init": 0.5,
        }

    return {
        "kind": "cat",
        "samples_per_frame": 480,
        "encoder": [
            {"kind": "patch", "patch_size": 240},
            stage(240, 8, 16),
            {"kind": "patch", "patch_size": 2},
            stage(16, 12, 16),
        ],
        "quantizer": {
            "input_size": 12,
            "residual_size": 10,
            "output_size": 12,
            "num_codebooks": 4,
            "codebook_size": 16,
            "code_size": 4,
        },
    }


def small_model(seed: int = 0) -> CatModel:
    torch.manual_seed(seed)
    return CatModel(build(CatConfig, small_settings()))


def small_stereo_settings() -> dict[str, Any]:
    """The same frame of 480 samples, of two channels each."""
    settings = small_settings()
    settings["num_audio_channels"] = 2
    settings["encoder"][0]["patch_size"] = 480
    settings["encoder"][1]["input_size"] = 480
    return settings


def small_stereo_model(seed: int = 0) -> CatModel:
    torch.manual_seed(seed)
    return CatModel(build(CatConfig, small_stereo_settings()))


@pytest.fixture
def model() -> CatModel:
    return small_model()


@pytest.fixture
def tokenizer() -> CatTokenizer:
    return CatTokenizer(small_model())
