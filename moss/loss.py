"""Per-channel cross-entropy as (sum, count), computed only where there is a label.

Division happens once, by counts that cover the whole optimizer step on all ranks (`weighted_mean`), so that the
loss does not depend on how a step is cut into micro-batches. Logits live one chunk of positions at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from moss.errors import ConfigError
from moss.spec import IGNORE_LABEL


@dataclass(frozen=True, slots=True)
class LossSums:
    """Summed cross-entropy and number of targets of each channel; fp32 (channels,) and int64 (channels,)."""

    sums: Tensor
    counts: Tensor

    def __add__(self, other: "LossSums") -> "LossSums":
        """Sums of two batches together."""
        return LossSums(self.sums + other.sums, self.counts + other.counts)


def channel_loss_sums(
    states: Tensor,
    labels: Tensor,
    head_weight: Callable[[int], Tensor],
    *,
    scales: Tensor | None = None,
    max_chunk_positions: int = 4096,
) -> LossSums:
    """Cross-entropy of every channel over its labelled rows.

    Args:
        states: Inputs of the heads, shape (rows, channels, width).
        labels: Targets, shape (rows, channels); IGNORE_LABEL where there is none.
        head_weight: Weight (ids, width) of a channel's head.
        scales: Factor of each channel's sum, shape (channels,); None for 1. The counts stay those of the labels.
        max_chunk_positions: Logits of at most so many rows exist at a time.
    """
    labelled = (labels != IGNORE_LABEL).T
    counts = labelled.sum(dim=1)
    # One list for all channels: the device is asked for sizes once, not once per channel.
    rows_of_channel = labelled.nonzero()[:, 1].split(counts.tolist())
    sums = []
    for channel, rows in enumerate(rows_of_channel):
        weight = head_weight(channel)
        total = states.new_zeros((), dtype=torch.float32)
        for part in rows.split(max_chunk_positions):
            inputs = (states[:, channel][part], weight, labels[:, channel][part])
            if len(rows) > max_chunk_positions and torch.is_grad_enabled():
                total = total + checkpoint(_cross_entropy_sum, *inputs, use_reentrant=False)
            else:
                total = total + _cross_entropy_sum(*inputs)
        sums.append(total)
    summed = torch.stack(sums)
    return LossSums(summed if scales is None else summed * scales, counts)


def _cross_entropy_sum(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(functional.linear(states, weight).float(), targets, reduction="sum")


def weighted_mean(sums: Tensor, counts: Tensor, weights: Tensor | None, *, only_present: bool = False) -> Tensor:
    """One loss from the channels' sums.

    Args:
        sums: Summed cross-entropy, shape (..., channels).
        counts: Targets that the mean is over, same shape; a channel without targets adds nothing.
        weights: Weight of each channel's mean, shape (channels,); None means the plain mean over all targets.
        only_present: Divide by the weights of the channels that have targets, not by all: what Local v1.5 is trained
            with, the other architectures not.

    Source: MOSS-TTS moss_tts_delay/modeling_moss_tts.py:310-379 and, for `only_present`,
        moss_tts_local_v1.5/finetuning/sft.py:613-706 @58b20a0.
    """
    if weights is None:
        return sums.sum(-1) / counts.sum(-1).clamp(min=1)
    total = (weights * (counts > 0)).sum(-1) if only_present else weights.sum()
    # Where no channel with a weight has a target, the sum is zero as well.
    return (weights * sums / counts.clamp(min=1)).sum(-1) / torch.where(total > 0, total, 1)


def expand_channel_weights(weights: Sequence[float] | None, num_codebooks: int) -> Tensor | None:
    """Channel weights from their short form.

    Args:
        weights: None, `(text, all audio)`: the second is shared equally by the codebooks, or one per channel.
        num_codebooks: Codebooks of the model.

    Raises:
        ConfigError: Another number of weights, a negative weight, or no positive one.
    Source: MOSS-TTS moss_tts_delay/finetuning/sft.py, --channelwise-loss-weight @58b20a0.
    """
    if weights is None:
        return None
    values = list(weights)
    if len(values) == 2 and num_codebooks != 1:
        values = [values[0]] + [values[1] / num_codebooks] * num_codebooks
    if len(values) != 1 + num_codebooks:
        raise ConfigError(
            f"loss.channel_weights has {len(weights)} values; give 2 (text, audio in all) or {1 + num_codebooks} "
            f"(text and {num_codebooks} codebooks)"
        )
    if min(values) < 0 or max(values) <= 0:
        raise ConfigError(f"loss.channel_weights={list(weights)}: weights are ≥ 0 and at least one is positive")
    return torch.tensor(values)
