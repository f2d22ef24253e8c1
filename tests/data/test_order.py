"""The order of training: every example once an epoch, a function of data, seed and epoch alone."""

from collections import Counter

import pytest

from moss.data.order import PackedOrder, keyed_generator
from moss.errors import DataError

LENGTHS = [7 + i % 13 for i in range(101)]


def rows_of_epochs(order: PackedOrder, epochs: int) -> list[list[list[int]]]:
    rows: list[list[list[int]]] = [[] for _ in range(epochs)]
    index = 0
    while True:
        epoch, row = order.row(index)
        if epoch == epochs:
            return rows
        rows[epoch].append(row)
        index += 1


def make(seed: int = 0, fingerprint: str = "a", window: int = 8) -> PackedOrder:
    return PackedOrder(LENGTHS, 50, window, seed, fingerprint)


def test_every_example_once_in_each_epoch_and_epochs_differ() -> None:
    epochs = rows_of_epochs(make(), 3)
    for rows in epochs:
        assert Counter(index for row in rows for index in row) == Counter(range(101))
        assert all(sum(LENGTHS[index] for index in row) <= 50 for row in rows)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_row_depends_on_nothing_that_was_asked_before() -> None:
    forward, backward = make(), make()
    want = [forward.row(index) for index in range(80)]
    assert [backward.row(index) for index in reversed(range(80))] == want[::-1]


@pytest.mark.parametrize("other", [make(seed=1), make(fingerprint="b")])
def test_another_seed_or_other_data_is_another_order(other: PackedOrder) -> None:
    assert rows_of_epochs(other, 1) != rows_of_epochs(make(), 1)
    assert rows_of_epochs(make(), 1) == rows_of_epochs(make(), 1)


def test_no_examples_is_an_error() -> None:
    with pytest.raises(DataError, match=r"no examples to train on; check data\.train_split"):
        PackedOrder([], 50, 8, 0, "a")


def test_streams_are_told_apart_by_every_part() -> None:
    draws = {keyed_generator(*parts).random() for parts in [("a", 1), ("a", 2), ("b", 1), ("a1",), ("a", "1", "")]}
    assert len(draws) == 5
    assert keyed_generator("a", 1).random() == keyed_generator("a", 1).random()
