"""Settings of tokenizer training: ranges, stages, and the experiments that ship."""

import math
from typing import Any

import pytest
import torch

from moss.config.compose import load_config
from moss.config.schema import build
from moss.config.tokenizer import CatConfig
from moss.config.tokenizer_training import SemanticScaling, TokenizerTrainingConfig
from moss.config.train import Precision, TrainConfig
from moss.errors import ConfigError
from moss.tokenizer.cat import CatModel


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"segment_s": 0}, "segment_s: must be positive, got 0"),
        ({"segments_per_step": 0}, "segments_per_step: must be positive, got 0"),
        ({"gain_db": -1}, "gain_db: must be 0 or more, got -1"),
        ({"waveform_weight": -1}, "waveform_weight: must be 0 or more, got -1"),
        ({"mid_side_weight": -1}, "mid_side_weight: must be 0 or more, got -1"),
        ({"waveform_end_weight": -1}, "waveform_end_weight: must be 0 or more, got -1"),
        ({"source_weights": {"a": 0}}, "source_weights: 'a': must be positive, got 0.0; leave the source out"),
        ({"adversarial_weight": -1}, "adversarial_weight: must be 0 or more, got -1"),
        ({"audio_every_s": -1}, "audio_every_s: must be 0 or more, got -1"),
        ({"replace_until_frac": 1.5}, "replace_until_frac: must be in [0, 1], got 1.5"),
        ({"ema_decay": 1.0}, "ema_decay: must be in [0, 1), got 1.0"),
        ({"more_manifests": ["a.jsonl"]}, "more_manifests: is given without manifest; name the first one there"),
        ({"discriminator": {"from_step": -1}}, "discriminator.from_step: must be 0 or more, or null, got -1"),
        ({"discriminator": {"lr": 0}}, "discriminator.lr: must be positive, got 0"),
        ({"discriminator": {"warmup_steps": -1}}, "discriminator.warmup_steps: must be 0 or more, got -1"),
        ({"discriminator": {"periods": [0]}}, "discriminator.periods: every entry must be at least 1, got [0]"),
        ({"discriminator": {"period_channels": []}}, "discriminator.period_channels: is empty; name the width of each"),
        (
            {"discriminator": {"from_step": 3, "segments_per_step": 0}},
            "discriminator.segments_per_step: must be at least 1, got 0",
        ),
        (
            {"discriminator": {"segments_per_step": 4}},
            "discriminator.segments_per_step: is given without from_step; there is no second stage",
        ),
        (
            {"discriminator": {"periods": [], "stft_windows": []}},
            "discriminator.periods: and stft_windows are both empty; name at least one discriminator",
        ),
        (
            {"discriminator": {"stft_bands": [0.0, 0.5, 0.5, 1.0]}},
            "discriminator.stft_bands: expected ascending edges from 0.0 to 1.0, got [0.0, 0.5, 0.5, 1.0]",
        ),
        ({"semantic": {"weight": -1}}, "semantic.weight: must be 0 (off) or more, got -1"),
        ({"semantic": {"num_layers": 0}}, "semantic.num_layers: must be at least 1, got 0"),
        ({"semantic": {"num_heads": 3}}, "semantic.num_heads: hidden_size 256 must divide into 3 heads of even width"),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(TokenizerTrainingConfig, values)
    assert f"  1. {message}" in str(caught.value)
    assert "\n  2." not in str(caught.value)


def test_stages_have_their_own_batches() -> None:
    two = build(
        TokenizerTrainingConfig, {"segments_per_step": 8, "discriminator": {"from_step": 5, "segments_per_step": 3}}
    )
    assert [two.segments_at(step) for step in (0, 4, 5, 9)] == [8, 8, 3, 3]
    assert [two.is_adversarial(step) for step in (4, 5)] == [False, True]
    one = build(TokenizerTrainingConfig, {"segments_per_step": 8})
    assert (one.segments_at(10**9), one.is_adversarial(10**9)) == (8, False)


def test_the_waveform_weight_moves_in_a_straight_line() -> None:
    moving = build(TokenizerTrainingConfig, {"waveform_weight": 40.0, "waveform_end_weight": 8.0})
    assert [moving.waveform_weight_at(step, 100) for step in (0, 50, 100, 200)] == [40.0, 24.0, 8.0, 8.0]
    still = build(TokenizerTrainingConfig, {"waveform_weight": 40.0})
    assert [still.waveform_weight_at(step, 100) for step in (0, 100)] == [40.0, 40.0]


@pytest.mark.parametrize(
    ("size", "values", "codebooks"),
    [
        ("xs", 6_201_984, 8),
        ("v2_xs", 2_508_416, 8),
        ("s", 48_145_664, 16),
        ("m", 286_370_304, 32),
        ("full", 1_774_566_400, 32),
    ],
)
def test_experiments_build_their_network(size: str, values: int, codebooks: int) -> None:
    config = load_config(TrainConfig, "train", [f"experiment=tokenizer_{size}"])
    assert isinstance(config.tokenizer, CatConfig)
    with torch.device("meta"):
        model = CatModel(config.tokenizer)
    assert sum(parameter.numel() for parameter in model.parameters()) == values
    spec = config.tokenizer.spec()
    assert (spec.frames_per_s, spec.num_codebooks) == (12.5, codebooks)
    assert (config.name, config.task.value) == (f"tokenizer_{size}", "tokenizer")


def test_the_full_experiment_is_the_published_recipe() -> None:
    config = load_config(TrainConfig, "train", ["experiment=tokenizer_full"])
    settings = config.tokenizer_training
    weights = (settings.mel_weight, settings.commitment_weight, settings.codebook_weight)
    assert (*weights, settings.adversarial_weight, settings.feature_weight) == (15, 0.25, 1, 1, 2)
    assert (settings.semantic.weight, settings.semantic.scaling) == (20, SemanticScaling.constant)
    assert (settings.codebook_dropout_prob, settings.bypass_steps, settings.init_frames) == (1, 0, 0)
    assert settings.replace_every_steps == 0
    assert [settings.segments_at(step) for step in (0, 519_999, 520_000, 1_019_999)] == [1536, 1536, 768, 768]
    assert config.schedule.max_steps == 1_020_000
    frames = int(settings.segment_s * 12.5)
    assert math.isclose(1536 * frames / 12.5, 5 * 3600, rel_tol=0.01)
    assert config.parallel.precision is Precision.bf16
