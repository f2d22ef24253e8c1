"""A call's settings: the model's recommended ones and what the caller changes."""

import pytest

from moss.config.generation import RECOMMENDED, Compatibility, GenerationConfig, SamplerConfig
from moss.config.model import DelayModelConfig, LocalModelConfig, Member, RealtimeModelConfig
from moss.errors import ConfigError, GenerationError
from moss.generation.presets import OVERRIDES, preset, with_overrides


def test_presets_are_those_of_the_member_and_architecture() -> None:
    assert preset(DelayModelConfig()) == RECOMMENDED["tts"]
    assert preset(DelayModelConfig(member=Member.sound_effect)).audio.repetition_penalty == 1.2
    assert preset(LocalModelConfig()).audio.temperature == 1.0
    assert preset(RealtimeModelConfig()).audio.penalty_window == 50


def test_overrides_change_what_they_name() -> None:
    base = GenerationConfig()
    made = with_overrides(
        base,
        LocalModelConfig(),
        temperature=0.5,
        top_k=7,
        text_temperature=0.0,
        max_frames=9,
        num_codebooks=8,
        compatibility="reference",
        top_p=None,
    )
    assert (made.audio.temperature, made.audio.top_k, made.audio.top_p) == (0.5, 7, base.audio.top_p)
    assert (made.text.temperature, made.text.top_k) == (0.0, base.text.top_k)
    assert (made.max_frames, made.num_codebooks, made.compatibility) == (9, 8, Compatibility.reference)
    assert with_overrides(base, DelayModelConfig(), **dict.fromkeys(OVERRIDES)) == base


def test_codebooks_are_mappings_or_samplers() -> None:
    own = [SamplerConfig(temperature=0.5, top_k=3), {"temperature": 2.0, "top_p": 0.5}]
    made = with_overrides(GenerationConfig(), LocalModelConfig(), num_codebooks=2, codebooks=own)
    assert made.codebooks == [own[0], SamplerConfig(temperature=2.0, top_p=0.5)]


def test_mistakes() -> None:
    base, delay, local = GenerationConfig(), DelayModelConfig(), LocalModelConfig()
    # No loop penalises text, and Realtime draws none.
    for name in ("text_repetition_penalty", "text_penalty_window"):
        with pytest.raises(GenerationError, match=f"unknown setting '{name}'; expected one of temperature, "):
            with_overrides(base, delay, **{name: 2})
    with pytest.raises(GenerationError, match="text_top_k: a Realtime model is given its text and draws none; leave"):
        with_overrides(base, RealtimeModelConfig(), text_top_k=2)
    with pytest.raises(GenerationError, match="unknown setting 'temprature'; expected one of temperature, "):
        with_overrides(base, delay, temprature=1.0)
    with pytest.raises(ConfigError, match=r"audio\.top_p: must be in \(0, 1\], got 2"):
        with_overrides(base, delay, top_p=2.0)
    with pytest.raises(GenerationError, match="num_codebooks=33: the model has 32; ask for at most that many"):
        with_overrides(base, local, num_codebooks=33)
    with pytest.raises(GenerationError, match="num_codebooks=8: architecture 'delay' speaks all its 32 codebooks"):
        with_overrides(base, delay, num_codebooks=8)
