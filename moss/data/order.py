"""Which examples train when: a pure function of (dataset fingerprint, seed, epoch, index).

World size, workers and accumulation only decide who computes a row, never what is in it. The state of a run is one
number, the index of the next step.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moss.errors import DataError
from moss.sequence.packing import pack

_EPOCHS_IN_MEMORY = 2
"""A step may reach from one epoch into the next."""


def keyed_generator(*parts: str | int) -> np.random.Generator:
    """A random stream that depends on nothing but `parts`."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


class Use(NamedTuple):
    """One use of an example."""

    epoch: int
    """How many times the example was used before, which decides what chance makes of it this time."""
    example: int


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
        self._cached: dict[int, list[list[Use]]] = {}

    def row(self, index: int) -> tuple[int, list[int]]:
        """The examples of a row.

        Args:
            index: Row number from the start of training.

        Returns:
            Its epoch and the positions of its examples in `lengths`.
        """
        epoch, uses = self._row(index)
        return epoch, [use.example for use in uses]

    def uses(self, index: int) -> list[Use]:
        """The examples of a row, each with the number of its own epoch."""
        return self._row(index)[1]

    def sequence(self, epoch: int) -> list[Use]:
        """The examples of an epoch in their order, before packing; costs the same for every epoch."""
        order = keyed_generator("order", self._fingerprint, self._seed, epoch).permutation(len(self._lengths))
        return [Use(epoch, int(i)) for i in order]

    def _row(self, index: int) -> tuple[int, list[Use]]:
        # How many rows an epoch has is known only once it is packed, and so is which epoch a row belongs to.
        while not self._ends or self._ends[-1] <= index:
            rows = self._epoch(len(self._ends))
            self._ends.append((self._ends[-1] if self._ends else 0) + len(rows))
        epoch = bisect_right(self._ends, index)
        start = self._ends[epoch - 1] if epoch else 0
        return epoch, self._epoch(epoch)[index - start]

    def _epoch(self, epoch: int) -> list[list[Use]]:
        if epoch not in self._cached:
            uses = self.sequence(epoch)
            packed = pack([self._lengths[use.example] for use in uses], self._budget, self._window)
            while len(self._cached) >= _EPOCHS_IN_MEMORY:
                del self._cached[min(self._cached)]
            self._cached[epoch] = [[uses[i] for i in row] for row in packed]
        return self._cached[epoch]


class MixtureOrder(PackedOrder):
    """The same for folders with weights: each epoch has as many examples as all folders together, shared by weight.

    A folder goes through its own examples again and again, each once before any comes back, whatever the other
    folders do; an epoch takes up where the last one left off.

    Args:
        lengths: Positions of each example, folder after folder.
        budget: Positions of a row.
        window: Look-ahead of packing.
        seed: Of the run.
        fingerprints: Of the folders.
        sizes: Examples of each folder.
        weights: Shares of the folders, positive.

    Raises:
        DataError: A folder without examples.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        budget: int,
        window: int,
        seed: int,
        fingerprints: Sequence[str],
        sizes: Sequence[int],
        weights: Sequence[float],
    ) -> None:
        for number, size in enumerate(sizes):
            if size < 1:
                raise DataError(
                    f"data.mixture[{number}] has no examples to train on; check data.train_split or leave it out"
                )
        super().__init__(lengths, budget, window, seed, "+".join(fingerprints))
        self._fingerprints, self._sizes = list(fingerprints), list(sizes)
        self.shares = shares_of(len(lengths), weights)

    def sequence(self, epoch: int) -> list[Use]:
        """The examples of an epoch in their order, before packing; costs the same for every epoch."""
        union: list[Use] = []
        start = 0
        for folder, (size, share) in enumerate(zip(self._sizes, self.shares, strict=True)):
            union += self._walk(folder, start, epoch * share, (epoch + 1) * share)
            start += size
        order = keyed_generator("mixture", self._fingerprint, self._seed, epoch).permutation(len(union))
        return [union[i] for i in order]

    def _walk(self, folder: int, start: int, begin: int, end: int) -> list[Use]:
        """Steps `begin` to `end` of a folder's endless walk through its examples, which begin at `start`."""
        size = self._sizes[folder]
        walked: list[Use] = []
        for epoch in range(begin // size, (end - 1) // size + 1):
            order = self._permutation(folder, epoch)
            first, last = max(begin - epoch * size, 0), min(end - epoch * size, size)
            walked += [Use(epoch, start + int(i)) for i in order[first:last]]
        return walked

    def _permutation(self, folder: int, epoch: int) -> npt.NDArray[np.int64]:
        key = keyed_generator("folder", folder, self._fingerprints[folder], self._seed, epoch)
        return key.permutation(self._sizes[folder])


def shares_of(total: int, weights: Sequence[float]) -> list[int]:
    """Split a number by weights, exactly: largest remainder, and at least one for each.

    Args:
        total: What is split; at least as many as there are weights.
        weights: Positive.

    Raises:
        DataError: Fewer than one for each, or a weight that is not positive.
    """
    if total < len(weights) or not all(weight > 0 for weight in weights):
        raise DataError(f"{total} examples cannot be shared by weights {list(weights)}; every weight must be positive")
    exact = [Fraction(weight) for weight in weights]
    quotas = [total * weight / sum(exact) for weight in exact]
    shares = [max(1, int(quota)) for quota in quotas]
    # Give what is left to those furthest below their quota; take what is too much from those furthest above it.
    while (missing := total - sum(shares)) != 0:
        step = 1 if missing > 0 else -1
        able = [i for i, share in enumerate(shares) if step > 0 or share > 1]
        chosen = max(able, key=lambda i: (step * (quotas[i] - shares[i]), -i))
        shares[chosen] += step
    return shares
