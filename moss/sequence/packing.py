"""Which examples share a micro-batch row: best fit into a budget of positions, with a bounded look-ahead."""

from collections.abc import Sequence

from moss.errors import DataError


def pack(lengths: Sequence[int], budget: int, window: int = 64) -> list[list[int]]:
    """Group examples into rows of at most `budget` positions, each example exactly once.

    Rows are filled from a window of the next unplaced examples: the longest that still fits goes in first. The
    look-ahead is bounded so that the order of training stays close to the given one.

    Args:
        lengths: Positions of each example, in training order.
        budget: Positions of one row.
        window: How many unplaced examples are looked at.

    Returns:
        For each row, indices into `lengths`.

    Raises:
        DataError: An example is longer than the budget.
    """
    for index, length in enumerate(lengths):
        if length > budget:
            raise DataError(f"example {index} has {length} positions, more than the budget of {budget}")
    waiting = list(range(min(window, len(lengths))))
    upcoming = len(waiting)
    rows: list[list[int]] = []
    while waiting:
        row: list[int] = []
        room = budget
        while True:
            fitting = [index for index in waiting if lengths[index] <= room]
            if not fitting:
                break
            # Start each row with the oldest example, so that none waits for ever.
            best = waiting[0] if not row else max(fitting, key=lambda index: (lengths[index], -index))
            waiting.remove(best)
            row.append(best)
            room -= lengths[best]
            if upcoming < len(lengths):
                waiting.append(upcoming)
                upcoming += 1
        rows.append(row)
    return rows
