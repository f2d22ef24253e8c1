"""The order of training: every example once an epoch, a function of data, seed and epoch alone."""

from collections import Counter

import pytest

from moss.data.order import MixtureOrder, PackedOrder, keyed_generator, shares_of
from moss.errors import DataError

LENGTHS = [7 + i % 13 for i in range(101)]

GOLDEN = [(0, [0, 11, 23, 26]), (0, [16, 9, 21, 15]), (1, [29, 23, 22]), (3, [14, 23, 21, 28])]
"""Rows 0, 1, 9 and 25 as the first release packed them."""


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


def test_the_order_of_running_runs_stays() -> None:
    order = PackedOrder([7 + i % 13 for i in range(30)], 50, 8, 3, "0123456789abcdef")
    assert [order.row(index) for index in (0, 1, 9, 25)] == GOLDEN
    assert order.uses(9) == [(GOLDEN[2][0], example) for example in GOLDEN[2][1]]


SIZES = (5, 17, 3)
MIXED = [7 + i % 13 for i in range(sum(SIZES))]


def mixture(weights: tuple[float, ...] = (1.0, 2.0, 0.5), **changes: object) -> MixtureOrder:
    values = {"seed": 0, "fingerprints": ("a", "b", "c"), "sizes": SIZES} | changes
    return MixtureOrder(MIXED, 50, 8, weights=weights, **values)  # type: ignore[arg-type]


def folder_of(example: int) -> int:
    return 0 if example < 5 else 1 if example < 22 else 2


def test_an_epoch_of_a_mixture_has_each_folder_by_its_weight() -> None:
    order = mixture()
    # 25 examples by 1 : 2 : 0.5 are 7.14, 14.29 and 3.57.
    assert order.shares == [7, 14, 4]
    for rows in rows_of_epochs(order, 5):
        assert Counter(folder_of(i) for row in rows for i in row) == {0: 7, 1: 14, 2: 4}
        assert all(sum(MIXED[i] for i in row) <= 50 for row in rows)


def test_a_folder_of_a_mixture_repeats_nothing_before_all_came() -> None:
    order = mixture()
    walks: dict[int, list[tuple[int, int]]] = {0: [], 1: [], 2: []}
    for epoch in range(11):
        for turn in order.sequence(epoch):
            walks[folder_of(turn.example)].append(turn)
    for folder, size in enumerate(SIZES):
        by_own_epoch = Counter(walks[folder])
        assert set(by_own_epoch.values()) == {1}
        whole = len(walks[folder]) // size
        assert {epoch for epoch, _ in walks[folder]} == set(range(whole + (len(walks[folder]) % size > 0)))
        for own in range(whole):
            assert len({example for epoch, example in walks[folder] if epoch == own}) == size


def test_any_epoch_of_a_mixture_is_found_without_the_earlier_ones() -> None:
    order = mixture()
    drawn: list[int] = []
    order._permutation = lambda folder, epoch: (
        drawn.append(epoch)
        or keyed_generator(folder, epoch).permutation(  # type: ignore[func-returns-value, method-assign]
            SIZES[folder]
        )
    )
    far = order.sequence(100_000)
    assert len(far) == 25
    assert len(drawn) <= 8
    assert min(drawn) > 1000


def test_a_row_of_a_mixture_depends_on_nothing_that_was_asked_before() -> None:
    forward, backward = mixture(), mixture()
    want = [forward.uses(index) for index in range(60)]
    assert [backward.uses(index) for index in reversed(range(60))] == want[::-1]
    assert mixture().uses(37) == want[37]


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"fingerprints": ("a", "b", "d")}, {"weights": (1.0, 2.0, 0.25)}, {"weights": (9.0, 1.0, 1.0)}],
)
def test_another_mixture_is_another_order(other: dict[str, object]) -> None:
    assert rows_of_epochs(mixture(**other), 1) != rows_of_epochs(mixture(), 1)  # type: ignore[arg-type]
    assert rows_of_epochs(mixture(), 1) == rows_of_epochs(mixture(), 1)


@pytest.mark.parametrize(
    ("total", "weights", "expected"),
    [
        (10, (1, 1), [5, 5]),
        (10, (1, 1, 1), [4, 3, 3]),
        (7, (0.5, 0.25, 0.25), [3, 2, 2]),
        (100, (0.1, 0.2, 0.7), [10, 20, 70]),
        (10, (1e-9, 1), [1, 9]),
        (4, (1, 1e-9, 1e-9, 1e-9), [1, 1, 1, 1]),
        (6, (1, 1, 1e-9, 1e-9), [2, 2, 1, 1]),
    ],
)
def test_shares_are_exact_and_leave_nobody_out(total: int, weights: tuple[float, ...], expected: list[int]) -> None:
    assert shares_of(total, weights) == expected


def test_what_cannot_be_mixed() -> None:
    with pytest.raises(DataError, match=r"data\.mixture\[1\] has no examples to train on; check data\.train_split or"):
        mixture(sizes=(22, 0, 3))
    for total, weights in ((1, (1, 1)), (5, (1, 0))):
        with pytest.raises(DataError, match=rf"{total} examples cannot be shared by weights .*must be positive"):
            shares_of(total, weights)


def test_no_examples_is_an_error() -> None:
    with pytest.raises(DataError, match=r"no examples to train on; check data\.train_split"):
        PackedOrder([], 50, 8, 0, "a")


def test_streams_are_told_apart_by_every_part() -> None:
    draws = {keyed_generator(*parts).random() for parts in [("a", 1), ("a", 2), ("b", 1), ("a1",), ("a", "1", "")]}
    assert len(draws) == 5
    assert keyed_generator("a", 1).random() == keyed_generator("a", 1).random()
