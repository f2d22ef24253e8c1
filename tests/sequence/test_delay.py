"""The delay pattern against a loop that moves one code at a time."""

import pytest
import torch

from moss.errors import DataError
from moss.sequence.delay import apply_delay, delay_mask, undo_delay

PAD = 1024
SIZES = [(frames, codebooks) for frames in (0, 1, 2, 3, 7, 20) for codebooks in (1, 2, 3, 8, 32)]


def slow_delay(codes: list[list[int]], num_codebooks: int) -> list[list[int]]:
    rows = [[PAD] * num_codebooks for _ in range(len(codes) + num_codebooks - 1)]
    for frame, row in enumerate(codes):
        for codebook, code in enumerate(row):
            rows[frame + codebook][codebook] = code
    return rows


@pytest.mark.parametrize(("frames", "codebooks"), SIZES)
def test_delay_equals_the_slow_loop_and_comes_back(frames: int, codebooks: int) -> None:
    codes = torch.randint(0, PAD, (frames, codebooks), generator=torch.Generator().manual_seed(frames))
    delayed = apply_delay(codes, PAD)
    assert delayed.tolist() == slow_delay(codes.tolist(), codebooks)
    assert torch.equal(delay_mask(frames, codebooks), delayed != PAD)
    if frames:
        assert torch.equal(undo_delay(delayed), codes)


@pytest.mark.parametrize(("positions", "codebooks"), [(0, 1), (0, 4), (3, 4)])
def test_no_complete_frame_is_an_error(positions: int, codebooks: int) -> None:
    message = f"{positions} positions for {codebooks} codebooks, so no frame is complete; at least {codebooks}"
    with pytest.raises(DataError, match=message):
        undo_delay(torch.zeros(positions, codebooks, dtype=torch.long))
