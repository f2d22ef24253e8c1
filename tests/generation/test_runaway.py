"""Only repetition is taken for a runaway."""

import pytest
import torch
from torch import Tensor

from moss.generation.runaway import is_runaway


def speech(frames: int) -> Tensor:
    return torch.randint(0, 1024, (frames, 8), generator=torch.Generator().manual_seed(frames))


def test_speech_is_none() -> None:
    assert not is_runaway(speech(300), 100)
    assert not is_runaway(list(speech(300)), 100)


@pytest.mark.parametrize("period", range(1, 13))
def test_a_pattern_over_and_over(period: int) -> None:
    pattern = speech(period).repeat(100, 1)
    frames = torch.cat([speech(40), pattern[:100]])
    assert is_runaway(frames, 100)
    assert is_runaway(list(frames), 100)
    # One frame too few, an interruption, something new at the end.
    assert not is_runaway(frames[:-1], 100)
    broken = frames.clone()
    broken[90, 3] += 1
    assert not is_runaway(broken, 100)
    assert not is_runaway(torch.cat([frames, speech(77)[:1]]), 100)


def test_longer_patterns_are_speech() -> None:
    frames = speech(13).repeat(20, 1)
    assert not is_runaway(frames, 100)
    assert is_runaway(frames, 100, longest_cycle=13)


def test_a_pattern_must_come_twice() -> None:
    assert not is_runaway(speech(8), 8)
    assert is_runaway(speech(4).repeat(2, 1), 8)
    assert not is_runaway(speech(5).repeat(2, 1)[:8], 8)


def test_off() -> None:
    assert not is_runaway(torch.zeros(500, 8), 0)
    assert not is_runaway(torch.zeros(0, 8), 0)
