"""Which examples train when: a pure function of (dataset fingerprint, seed, epoch, index).

World size, workers and accumulation only decide who computes a row, never what is in it. The state of a run is one
number, the index of the next step.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from moss.errors import DataError
from moss.sequence.packing import pack


def keyed_generator(*parts: str | int) -> np.random.Generator:
    """A random stream that depends on nothing but `parts`."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


class PackedOrder:
    """The endless sequence of packed rows: epoch after epoch, every example once in each.

    Args:
        lengths: Positions of each example.
        budget: Positions of a row.
        window: Look-ahead of packing.
        seed: Of the run.
        fingerprint: Of the data: other data, other order.
    """

    def __init__(self, lengths: Sequence[int], budget: int, window: int, seed: int, fingerprint: str) -> None:
        if not lengths:
            raise DataError("no examples to train on; check data.train_split and the shards' summary")
        self._lengths = list(lengths)
        self._budget, self._window = budget, window
        self._seed, self._fingerprint = seed, fingerprint
        self._ends: list[int] = []
        self._cached: tuple[int, list[list[int]]] | None = None

    def row(self, index: int) -> tuple[int, list[int]]:
        """The examples of a row.

        Args:
            index: Row number from the start of training.

        Returns:
            Its epoch and the positions of its examples in `lengths`.
        """
        while not self._ends or self._ends[-1] <= index:
            rows = self._epoch(len(self._ends))
            self._ends.append((self._ends[-1] if self._ends else 0) + len(rows))
        epoch = bisect_right(self._ends, index)
        start = self._ends[epoch - 1] if epoch else 0
        return epoch, self._epoch(epoch)[index - start]

    def _epoch(self, epoch: int) -> list[list[int]]:
        if self._cached is None or self._cached[0] != epoch:
            order = keyed_generator("order", self._fingerprint, self._seed, epoch).permutation(len(self._lengths))
            packed = pack([self._lengths[i] for i in order], self._budget, self._window)
            self._cached = (epoch, [[int(order[i]) for i in row] for row in packed])
        return self._cached[1]
