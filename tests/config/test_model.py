"""What the sections of the generators refuse."""

from typing import Any

import pytest

from moss.config.model import ModelConfig
from moss.config.schema import check

SIZES: dict[str, Any] = {"vocab_size": 152_000, "hidden_size": 64, "num_heads": 4, "num_kv_heads": 2}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"architecture": "local", "depth_hidden_size": 0}, "depth_hidden_size: must be at least 1, got 0"),
        ({"architecture": "local", "vocab_size": 151_650}, "vocab_size: 151650 rows do not hold the special id"),
        ({"architecture": "delay", "pad_token_id": 151_644}, "the special ids pad and im_start are both 151644"),
        ({"architecture": "local_v15", "depth_num_heads": 3}, "depth_num_heads: 3 do not divide hidden_size=64"),
        (
            {"architecture": "local_v15", "depth_num_heads": 4, "depth_activation": "swish1"},
            "depth_activation: expected one of silu, gelu, gelu_new, gelu_pytorch_tanh, relu, got 'swish1'",
        ),
        ({"architecture": "local_v15", "stop_head": "ternary"}, "expected one of binary, full_vocab"),
        ({"architecture": "realtime", "text_lead": 0}, "text_lead: must be at least 1, got 0"),
        (
            {"architecture": "realtime", "depth_num_heads": 3},
            "depth_num_heads: 3 is no multiple of depth_num_kv_heads=8",
        ),
        ({"architecture": "realtime", "depth_head_dim": 5}, "depth_head_dim: rotary embedding needs an even number"),
        ({"architecture": "diffusion"}, "expected one of delay, local, local_v15, realtime, got 'diffusion'"),
        ({"architecture": "delay", "template": "moss_v9"}, "expected one of moss_tts_delay_v1, moss_ttsd_v1"),
        ({"architecture": "delay", "member": "singer"}, "expected one of tts, ttsd, voice_generator, sound_effect"),
    ],
)
def test_impossible_models_are_refused_by_field(changes: dict[str, Any], problem: str) -> None:
    problems = check(ModelConfig, SIZES | changes)
    assert any(problem in found for found in problems), problems


@pytest.mark.parametrize("architecture", list(ModelConfig.variants))
def test_defaults_with_small_sizes_are_possible(architecture: str) -> None:
    assert check(ModelConfig, {"architecture": architecture, **SIZES}) == []
