"""Geometry of the tokenizer settings: presets, mistakes, and what makes two networks the same."""

import dataclasses
from typing import Any

import pytest
import torch

from moss.config.load_tokenizer import load_tokenizer_config
from moss.config.schema import build, to_plain
from moss.config.tokenizer import CatConfig, TokenizerConfig, TransformerStage
from moss.errors import ConfigError
from moss.tokenizer.cat import CatModel
from moss.tokenizer.transformer import Transformer


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


PRESETS = {
    "cat_xs": (6_201_984, [1000, 500, 250, 125]),
    "cat_full": (1_774_566_400, [1000, 500, 250, 125]),
    "cat_v2": (2_123_701_248, [400, 400, 400, 400, 250, 125]),
    "cat_v2_xs": (2_508_416, [128, 96, 64, 48, 32, 16]),
    "cat_nano": (21_969_664, [1600, 1200, 800, 500]),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    """Number of values, and windows in positions, from the first encoder stage on and back again."""
    config = load_tokenizer_config(name)
    assert isinstance(config, CatConfig)
    with torch.device("meta"):
        model = CatModel(config)
    values, windows = PRESETS[name]
    assert sum(value.numel() for value in model.parameters()) == values
    for stack, expected in ((model.encoder, windows), (model.decoder, windows[::-1])):
        assert stack is not None
        assert [stage.context for stage in stack if isinstance(stage, Transformer)] == expected


def test_stereo_presets_have_the_rates_of_the_published_ones() -> None:
    for name in ("cat_v2", "cat_nano"):
        spec = load_tokenizer_config(name).spec()
        assert (spec.sampling_rate_hz, spec.samples_per_frame, spec.num_audio_channels) == (48_000, 3840, 2)
        assert spec.frames_per_s == 12.5


def test_the_24_khz_preset_is_the_defaults_spelt_out() -> None:
    """Spelt out, so that it refuses another checkpoint; see `with_geometry_of_weights`."""
    preset = load_tokenizer_config("cat_full")
    assert preset.decoder is not None
    assert dataclasses.replace(preset, decoder=None) == CatConfig()
    assert preset.geometry() == CatConfig().geometry()


def test_unverified_fields_exist() -> None:
    for name in ("cat_v2", "cat_nano"):
        config = load_tokenizer_config(name)
        known = {f"{side}.{field.name}" for side in ("encoder", "decoder") for field in stage_fields()}
        assert config.unverified
        assert set(config.unverified) <= known | {field.name for field in dataclasses.fields(config)}


def stage_fields() -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(TransformerStage)


@pytest.mark.parametrize(
    "change",
    [
        {"sampling_rate_hz": 48_000},
        {"quantizer": {"num_codebooks": 8}},
        {"encoder": 1, "context_s": 9.0},
        {"encoder": 1, "num_heads": 6},
        {"encoder": 1, "rope_theta": 20_000.0},
        {"encoder": 7, "always_project": True},
    ],
)
def test_geometry_tells_networks_apart(change: dict[str, Any]) -> None:
    plain = to_plain(CatConfig())
    if "encoder" in change:
        (name,) = change.keys() - {"encoder"}
        plain["encoder"][change["encoder"]][name] = change[name]
    else:
        plain |= change
    assert build(CatConfig, plain).geometry() != CatConfig().geometry()


@pytest.mark.parametrize(
    "change", [{"part": "encoder"}, {"compute_dtype": "bf16"}, {"weights": "x"}, {"unverified": ["encoder"]}]
)
def test_geometry_is_the_network_alone(change: dict[str, Any]) -> None:
    assert build(CatConfig, change).geometry() == CatConfig().geometry()


def test_geometry_overlooks_what_changes_no_function() -> None:
    plain = to_plain(CatConfig())
    plain["decoder"] = to_plain(CatConfig().decoder_stages())
    plain["encoder"][1] |= {"layer_scale_init": 0.5, "always_project": True}
    assert build(CatConfig, plain).geometry() == CatConfig().geometry(), "its widths all differ, it projects anyway"
