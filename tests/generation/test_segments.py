"""Cutting blocks of audio to a number of new frames."""

import torch

from moss.generation.segments import AudioSegment, first_frames


def test_given_frames_do_not_count() -> None:
    codes = torch.arange(20).reshape(10, 2)
    segments = [AudioSegment(codes, 4), AudioSegment(codes[:3], 0), AudioSegment(codes[:2], 0)]
    assert [len(one.codes) for one in first_frames(segments, 100)] == [10, 3, 2]
    kept = first_frames(segments, 7)
    assert [(len(one.codes), one.num_given) for one in kept] == [(10, 4), (1, 0)]
    (first,) = first_frames(segments, 5)
    assert torch.equal(first.codes, codes[:9])
    assert [len(one.codes) for one in first_frames(segments, 9)] == [10, 3]
