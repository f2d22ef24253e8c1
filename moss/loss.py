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
    hidden: Tensor, labels: Tensor, head_weight: Callable[[int], Tensor], max_chunk_positions: int = 4096
) -> LossSums:
    """Cross-entropy of every channel over its labelled positions.

    Args:
        hidden: Final hidden states, shape (..., width).
        labels: Targets aligned with `hidden`, shape (..., channels); IGNORE_LABEL where there is none.
        head_weight: Weight (ids, width) of a channel's head.
        max_chunk_positions: Logits of at most so many positions exist at a time.
    """
    hidden_PD = hidden.reshape(-1, hidden.shape[-1])
    labels_PC = labels.reshape(-1, labels.shape[-1])
    sums, counts = [], []
    for channel in range(labels_PC.shape[1]):
        targets = labels_PC[:, channel]
        chosen = (targets != IGNORE_LABEL).nonzero().squeeze(1)
        weight = head_weight(channel)
        total = hidden_PD.new_zeros((), dtype=torch.float32)
        for part in chosen.split(max_chunk_positions):
            inputs = (hidden_PD[part], weight, targets[part])
            if len(chosen) > max_chunk_positions and torch.is_grad_enabled():
                total = total + checkpoint(_cross_entropy_sum, *inputs, use_reentrant=False)
            else:
                total = total + _cross_entropy_sum(*inputs)
        sums.append(total)
        counts.append(chosen.new_tensor(len(chosen)))
    return LossSums(torch.stack(sums), torch.stack(counts))


def _cross_entropy_sum(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(functional.linear(hidden, weight).float(), targets, reduction="sum")


def weighted_mean(sums: Tensor, counts: Tensor, weights: Tensor | None) -> Tensor:
    """One loss from the channels' sums.

    Args:
        sums: Summed cross-entropy, shape (..., channels).
        counts: Targets that the mean is over, same shape; a channel without targets adds nothing.
        weights: Weight of each channel's mean, shape (channels,); None means the plain mean over all targets.

    Source: MOSS-TTS moss_tts_delay/modeling_moss_tts.py:310-379 @58b20a0.
    """
    if weights is None:
        return sums.sum(-1) / counts.sum(-1).clamp(min=1)
    return (weights * sums / counts.clamp(min=1)).sum(-1) / weights.sum()


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
