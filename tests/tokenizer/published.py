"""Published checkpoint folders of a few thousand values, in both generations' forms."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from moss.config.published_tokenizer import Generation, config_from_published, published_config
from moss.config.schema import build
from moss.config.tokenizer import CatConfig
from moss.tokenizer.cat import CatModel
from moss.tokenizer.hf_map import key_48khz
from tests.tokenizer.conftest import small_settings


def small_config(generation: Generation) -> CatConfig:
    """The small mono network in v1's form; the same one with all projections, and stereo, in v2's."""
    settings = small_settings()
    settings["encoder"][3] |= {"output_size": 16}
    settings["quantizer"] |= {"input_size": 16, "output_size": 16}
    if generation is Generation.v2:
        settings |= {"num_audio_channels": 2, "samples_per_frame": 240, "sampling_rate_hz": 12_000}
        for stage in settings["encoder"]:
            if stage["kind"] == "transformer":
                stage["always_project"] = True
    return build(CatConfig, settings)


def small_state(config: CatConfig, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under canonical names."""
    torch.manual_seed(seed)
    return {key: value.clone() for key, value in CatModel(config).state_dict().items()}


def codes_from_public(codes_KBT: Tensor) -> Tensor:
    """Published order (codebooks, batch, frames) to (batch, frames, codebooks)."""
    return codes_KBT.permute(1, 2, 0)


def write_folder(
    folder: Path, generation: Generation = Generation.v1, changes: Mapping[str, Any] | None = None
) -> tuple[CatConfig, dict[str, Tensor]]:
    """A published folder; `changes` go into its config.json. Returns what it should be read as."""
    config = small_config(generation)
    state = small_state(config)
    folder.mkdir(parents=True)
    values = published_config(config, generation) | dict(changes or {})
    (folder / "config.json").write_text(json.dumps(values))
    names = key_48khz if generation is Generation.v2 else str
    save_file({names(key): value for key, value in state.items()}, folder / "model.safetensors")
    return config_from_published(values, state), state
