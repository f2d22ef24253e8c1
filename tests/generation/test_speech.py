"""Codes at once, sound when asked for, without what a prompt gave."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from moss.errors import GenerationError
from moss.generation.segments import AudioSegment
from moss.generation.speech import Speech
from moss.tokenizer.interface import AudioTokenizer
from tests.generation.toy import CausalTokenizer, small_cat

CODES = torch.randint(0, 16, (12, 4), generator=torch.Generator().manual_seed(1))


def speech(*segments: AudioSegment, tokenizer: AudioTokenizer | None = None, error: str | None = None) -> Speech:
    return Speech(
        id="s",
        text="a",
        segments=segments,
        stop_reason="end",
        seed=0,
        num_codebooks=4,
        tokenizer=tokenizer or CausalTokenizer(),
        error=error,
    )


def test_several_blocks_are_joined_and_given_frames_cut() -> None:
    made = speech(AudioSegment(CODES[:7], 3), AudioSegment(CODES[7:], 0))
    assert torch.equal(made.codes, CODES[3:])
    first, second = CausalTokenizer().decode([CODES[:7], CODES[7:]])
    # The first block was decoded behind its given frames, the second stands alone.
    assert torch.equal(made.audio, torch.cat([first[60:], second]))
    assert made.duration_s == 9 * 0.08


def test_stereo_blocks_are_joined_and_written_with_both_channels(tmp_path: Path) -> None:
    tokenizer = small_cat(audio_channels=2)
    made = speech(AudioSegment(CODES[:7], 3), AudioSegment(CODES[7:], 0), tokenizer=tokenizer)
    first, second = tokenizer.decode([CODES[:7], CODES[7:]])
    assert torch.equal(made.audio, torch.cat([first[:, 60:], second], dim=1))
    assert made.audio.shape == (2, 9 * 20)
    assert not torch.equal(made.audio[0], made.audio[1])
    samples, rate_hz = soundfile.read(made.save(tmp_path / "a.wav"))
    assert rate_hz == 400
    assert samples.shape == (9 * 20, 2)
    assert np.allclose(samples.T, made.audio.clamp(-1, 1).numpy(), atol=1e-4)


def test_sound_is_decoded_when_asked_for_and_once() -> None:
    calls = []

    class Counting(CausalTokenizer):
        def decode(self, *arguments: object) -> list[torch.Tensor]:  # type: ignore[override]
            calls.append(1)
            return super().decode(*arguments)  # type: ignore[arg-type]

    made = speech(AudioSegment(CODES, 0), tokenizer=Counting())
    assert len(made.codes) == 12
    assert calls == []
    assert made.audio is made.audio
    assert calls == [1]


def test_a_failed_one_says_why() -> None:
    failed = speech(error="too long")
    assert failed.codes.shape == (0, 4)
    with pytest.raises(GenerationError, match="s: has no audio, its request failed: too long"):
        _ = failed.audio
    with pytest.raises(GenerationError, match="s: too long"):
        failed.required()
    assert speech(AudioSegment(CODES, 0)).required().error is None
