"""Geometry mistakes of the tokenizer settings."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from moss.config.schema import build
from moss.config.tokenizer import CatConfig, TokenizerConfig
from moss.errors import ConfigError
from moss.tokenizer.cat import CatModel

CONFIGS = Path(__file__).parents[2] / "configs" / "tokenizer"


def patch(size: int) -> dict[str, Any]:
    return {"kind": "patch", "patch_size": size}


def stage(**changes: int) -> dict[str, Any]:
    sizes = {"input_size": 4, "output_size": 768, "hidden_size": 8, "num_layers": 1, "num_heads": 2}
    return {"kind": "transformer", **sizes, "intermediate_size": 8, **changes}


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ([patch(4), stage(input_size=5)], r"encoder\[1\].input_size: expected 4 from the stage before, got 5"),
        ([patch(2), stage(input_size=2)], "encoder: the patches multiply to 2, expected samples_per_frame 4"),
        ([patch(4), stage(output_size=7)], "encoder: ends with width 7, expected 768"),
        ([patch(0), stage()], r"encoder\[0\].patch_size: expected at least 1, got 0"),
        ([patch(4), stage(num_heads=3)], r"encoder\[1\].num_heads: hidden_size 8 must divide into 3 heads"),
        ([patch(4), stage(num_heads=8)], r"encoder\[1\].num_heads: hidden_size 8 must divide into 8 heads"),
        ([patch(4), stage(num_layers=0)], r"encoder\[1\].num_layers: expected at least 1, got 0"),
        ([patch(4), stage(context_s=0)], r"encoder\[1\].context_s: expected more than 0 s, got 0"),
        ([{"kind": "conv"}], r"encoder\[0\].kind: expected one of patch, transformer, got 'conv'"),
    ],
)
def test_geometry_mistakes_are_named(encoder: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(TokenizerConfig, {"kind": "cat", "samples_per_frame": 4, "encoder": encoder})


def test_decoder_must_unfold_evenly() -> None:
    encoder, decoder = [patch(4), stage()], [stage(input_size=768, output_size=5), patch(4)]
    with pytest.raises(ConfigError, match=r"decoder\[1\]: width 5 does not unfold by patch_size 4"):
        build(CatConfig, {"samples_per_frame": 4, "encoder": encoder, "decoder": decoder})


def test_sizes_of_quantizer_and_rates_are_positive() -> None:
    with pytest.raises(ConfigError, match=r"quantizer\.code_size: expected at least 1, got 0"):
        build(CatConfig, {"quantizer": {"code_size": 0}})
    with pytest.raises(ConfigError, match="sampling_rate_hz: expected at least 1, got 0"):
        build(CatConfig, {"sampling_rate_hz": 0})


@pytest.mark.parametrize(("name", "values"), [("cat_xs", 6_201_984), ("cat_full", 1_774_566_400)])
def test_presets(name: str, values: int) -> None:
    config = build(TokenizerConfig, yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()))
    assert isinstance(config, CatConfig)
    with torch.device("meta"):
        model = CatModel(config)
    assert sum(value.numel() for value in model.parameters()) == values
