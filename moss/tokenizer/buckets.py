"""Items of different lengths in few forward passes: buckets of similar ones, padded behind."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LONGEST_PADDING_FRAC = 0.25
"""Of an item's padded length, within a bucket."""


def buckets(frames: Sequence[int], most: int) -> list[list[int]]:
    """Indices of items of similar length, to be padded to the longest of them and run together.

    Args:
        frames: Length of each item; items without frames are in no bucket.
        most: Frames of a bucket, padding included; a longer item is alone.
    """
    made: list[list[int]] = []
    for i in sorted((i for i, count in enumerate(frames) if count), key=lambda i: -frames[i]):
        longest = frames[made[-1][0]] if made else 0
        if made and longest * (len(made[-1]) + 1) <= most and frames[i] >= longest * (1 - LONGEST_PADDING_FRAC):
            made[-1].append(i)
        else:
            made.append([i])
    return made


def padded(items: list[Tensor], axis: int, value: int) -> Tensor:
    """Items that differ along `axis`, filled up behind and stacked; one alone is not copied."""
    if len(items) == 1:
        return items[0][None]
    longest = max(item.shape[axis] for item in items)
    after = [0, 0] * (items[0].dim() - 1 - axis % items[0].dim())
    return torch.stack([F.pad(item, (*after, 0, longest - item.shape[axis]), value=value) for item in items])
