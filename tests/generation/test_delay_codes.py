"""Rows of a turn become blocks of codes."""

import torch
from torch import Tensor

from moss.config.generation import Compatibility
from moss.generation.delay_codes import audio_segments
from moss.sequence.delay import apply_delay

PAD, N = 9, 3
NONE = Compatibility.none


def text_rows(count: int) -> Tensor:
    return torch.cat([torch.ones(count, 1), torch.full((count, N), PAD)], dim=1).long()


def block(codes: Tensor) -> Tensor:
    delayed = apply_delay(codes, PAD)
    return torch.cat([torch.full((len(delayed), 1), 2), delayed], dim=1)


def some_codes(frames: int) -> Tensor:
    return torch.arange(frames * N).reshape(frames, N) % PAD


def test_several_blocks_in_order() -> None:
    rows = torch.cat([text_rows(1), block(some_codes(4)), text_rows(3), block(some_codes(1)), text_rows(2)])
    first, second = audio_segments(rows, 0, PAD, NONE)
    assert torch.equal(first.codes, some_codes(4))
    assert torch.equal(second.codes, some_codes(1))
    assert (first.num_given, second.num_given) == (0, 0)


def test_neighbouring_blocks_are_told_apart() -> None:
    rows = torch.cat([text_rows(1), block(some_codes(2)), text_rows(2), block(some_codes(5)), text_rows(1)])
    assert [len(segment.codes) for segment in audio_segments(rows, 0, PAD, NONE)] == [2, 5]


def test_given_frames_belong_to_the_first_block() -> None:
    rows = torch.cat([text_rows(1), block(some_codes(5)), text_rows(2), block(some_codes(2)), text_rows(1)])
    segments = audio_segments(rows, 1 + 3, PAD, NONE)
    assert [segment.num_given for segment in segments] == [3, 0]
    # The published code counts the start token as a frame.
    published = audio_segments(rows, 1 + 3, PAD, Compatibility.reference)
    assert [segment.num_given for segment in published] == [4, 0]


def test_nothing_new_is_no_segment() -> None:
    rows = torch.cat([text_rows(1), block(some_codes(3))])
    assert audio_segments(rows, 1 + 3, PAD, NONE) == []


def test_incomplete_frames_are_left_out() -> None:
    rows = torch.cat([text_rows(1), block(some_codes(5))[:5]])
    (segment,) = audio_segments(rows, 0, PAD, NONE)
    assert torch.equal(segment.codes, some_codes(3))


def test_no_audio() -> None:
    assert audio_segments(text_rows(1), 0, PAD, NONE) == []
    assert audio_segments(text_rows(20), 0, PAD, NONE) == []
