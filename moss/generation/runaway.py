"""Recognise a model that has stopped speaking and only repeats itself."""

from collections.abc import Sequence

import torch
from torch import Tensor

LONGEST_CYCLE = 12
"""Frames of the longest pattern that is looked for: about a second."""


def is_runaway(frames: Sequence[Tensor] | Tensor, repeats: int, longest_cycle: int = LONGEST_CYCLE) -> bool:
    """Whether the last frames are one and the same, or a short pattern over and over.

    Args:
        frames: Generated frames in order, each (codebooks,); only the last `repeats` count.
        repeats: How many of the last frames must be covered; 0 never is a runaway.
        longest_cycle: Frames of the longest pattern, which must come at least twice.
    """
    if repeats == 0 or len(frames) < repeats:
        return False
    last = frames[-1]
    recent: Tensor | None = None
    for period in range(1, min(longest_cycle, repeats // 2) + 1):
        # Comparing one frame first makes the usual case cheap.
        if not torch.equal(last, frames[-1 - period]):
            continue
        if recent is None:
            recent = frames[-repeats:] if isinstance(frames, Tensor) else torch.stack(list(frames[-repeats:]))
        if torch.equal(recent[period:], recent[:-period]):
            return True
    return False
