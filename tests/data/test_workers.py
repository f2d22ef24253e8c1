import os
from functools import partial

import pytest

from moss.data.workers import map_batches
from moss.errors import DataError


def _add(number, batch):
    return [value + number for value in batch]


def _make_add(number):
    return partial(_add, number)


def _die(batch):
    os._exit(9)


def _make_die():
    return _die


@pytest.mark.parametrize("workers", [1, 2])
def test_every_batch_has_its_result(workers):
    batches = [[1, 2], [3], [4, 5]]
    found = sorted(map_batches(batches, partial(_make_add, 10), workers, "adding"))
    assert found == [[11, 12], [13], [14, 15]]


def test_nothing_makes_nothing():
    assert list(map_batches([], _make_die, 3, "adding")) == []


def test_one_batch_is_done_in_this_process():
    made = []
    list(map_batches([[1]], lambda: made.append(os.getpid()) or partial(_add, 1), 4, "adding"))
    assert made == [os.getpid()]


def test_a_process_that_dies_is_named():
    with pytest.raises(DataError, match=r"a measuring process died, perhaps for want of memory; .* fewer --workers"):
        list(map_batches([[1], [2]], _make_die, 2, "measuring"))
