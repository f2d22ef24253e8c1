"""Blocks: counted without codes, laid out with them."""

import pytest
import torch

from moss.errors import DataError
from moss.sequence.grid import Block, checked_codes, lay_out, num_positions
from moss.sequence.prompt import Placeholder

CODES = torch.tensor([[1, 2], [3, 4]])


def test_ids_codes_and_marks_stand_where_they_should() -> None:
    blocks = [Block(ids=[10, 11]), Block(ids=[12, 13, 14, 15], codes=CODES, first=1, marks={0: 8, 3: 9})]
    assert lay_out(blocks, 2, 7).tolist() == [
        [10, 7, 7],
        [11, 7, 7],
        [12, 8, 7],
        [13, 1, 2],
        [14, 3, 4],
        [15, 9, 7],
    ]


def test_delayed_codes() -> None:
    rows = lay_out([Block(ids=[1, 1, 1], codes=CODES, delayed=True)], 2, 7)
    assert rows[:, 1:].tolist() == [[1, 7], [3, 2], [7, 4]]


def test_a_placeholder_counts_but_is_not_laid_out() -> None:
    block = Block(ids=[1, 1], codes=Placeholder(2))
    assert num_positions([block, block]) == 4
    with pytest.raises(DataError, match=r"a placeholder of 2 frames stands where codes are needed; placeholders only"):
        lay_out([block], 2, 7)


def test_codes_become_int64() -> None:
    assert checked_codes(CODES.to(torch.int16), 2, 7).dtype == torch.long


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(0, 2), r"expected codes of shape \(frames, 2\), got \(0, 2\); encode with as many"),
        (torch.zeros(3, 1), r"expected codes of shape \(frames, 2\), got \(3, 1\)"),
        (torch.zeros(2), r"expected codes of shape \(frames, 2\), got \(2,\)"),
        (
            torch.tensor([[0, 7]]),
            r"codes range over 0\.\.7, outside \[0, 7\); .* Encode the audio again with the model",
        ),
        (torch.tensor([[-1, 0]]), r"codes range over -1\.\.0"),
    ],
)
def test_bad_codes(codes: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        checked_codes(codes, 2, 7)
