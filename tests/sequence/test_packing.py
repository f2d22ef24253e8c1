"""Packing places each example once, keeps the budget, and depends on nothing but its arguments."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moss.errors import DataError
from moss.sequence.packing import pack


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=80), st.integers(50, 120), st.integers(1, 70))
def test_every_example_once_within_budget_and_window(lengths: list[int], budget: int, window: int) -> None:
    rows = pack(lengths, budget, window)
    placed = [index for row in rows for index in row]
    assert sorted(placed) == list(range(len(lengths)))
    assert all(row and sum(lengths[index] for index in row) <= budget for row in rows)
    assert pack(lengths, budget, window) == rows
    # At any moment the next `window` unplaced examples are looked at: nothing overtakes from farther back.
    assert all(index - rank < window for rank, index in enumerate(placed))
    # A row begins with the oldest that waits.
    left = set(range(len(lengths)))
    for row in rows:
        assert row[0] == min(left)
        left -= set(row)


def test_rows_are_full() -> None:
    assert pack([60, 30, 50, 10, 40], 100, 5) == [[0, 4], [1, 2, 3]]
    assert pack([60, 30, 50, 10, 40], 100, 1) == [[0, 1], [2, 3, 4]]


def test_too_long_names_example_and_budget() -> None:
    with pytest.raises(DataError, match="example 1 has 101 positions, more than the budget of 100"):
        pack([100, 101], 100)
