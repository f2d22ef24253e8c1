"""The only sampler: penalty, top-k, top-p and a draw, all as pure functions of logits and uniform numbers.

Randomness comes in as uniform numbers in [0, 1), so that a request's draws never depend on its batch neighbours.
Order: temperature, repetition penalty, top-k, top-p, draw.
Source: MOSS-TTS moss_tts_delay/inference_utils.py @58b20a0 (filters and their order).
"""

import torch
from torch import Tensor

from moss.config.generation import SamplerConfig


def scale(logits: Tensor, temperature: float) -> Tensor:
    """Logits over temperature; a temperature of 0 or less (greedy) leaves them as they are."""
    return logits if temperature <= 0 else logits / temperature


def penalise_seen(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make ids that were seen before less likely.

    Args:
        logits: Shape (..., ids).
        seen: Bool, broadcastable to `logits`.
        penalty: Divides positive logits and multiplies the others.
    """
    if penalty == 1.0:
        return logits
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Set all but the k largest logits to -inf; exactly k remain, also among equals. 0 keeps all."""
    if top_k <= 0 or top_k >= logits.shape[-1]:
        return logits
    values, ids = logits.topk(top_k, dim=-1)
    return torch.full_like(logits, float("-inf")).scatter(-1, ids, values)


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Set the unlikely tail to -inf; the id at which the sum of probabilities crosses `top_p` remains."""
    if top_p >= 1.0:
        return logits
    probabilities, ids = logits.softmax(-1).sort(dim=-1, descending=True)
    before = probabilities.cumsum(-1) - probabilities
    # The published code compares the running sum of the ids before; the first id always stays.
    cut = before > top_p
    cut[..., 0] = False
    return logits.masked_fill(torch.zeros_like(cut).scatter(-1, ids, cut), float("-inf"))


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """One id per row by inversion of the cumulative distribution.

    Args:
        logits: Shape (..., ids), at least one finite a row.
        uniform: Numbers in [0, 1), shape (...).
    """
    cumulative = logits.float().softmax(-1).cumsum(-1)
    threshold = (uniform.to(cumulative) * cumulative[..., -1]).unsqueeze(-1)
    ids = (cumulative <= threshold).sum(-1)
    # Rounding can push the threshold onto the last step: fall back to the last id that is possible at all.
    last = logits.shape[-1] - 1 - torch.isfinite(logits).flip(-1).int().argmax(-1)
    return torch.minimum(ids, last)


def sample(logits: Tensor, config: SamplerConfig, uniform: Tensor, seen: Tensor | None = None) -> Tensor:
    """Draw ids from raw logits.

    Args:
        logits: Shape (..., ids).
        config: Temperature, filters, penalty.
        uniform: Numbers in [0, 1), shape (...).
        seen: Bool (..., ids): what the repetition penalty applies to.
    """
    scores = scale(logits, config.temperature)
    if seen is not None:
        scores = penalise_seen(scores, seen, config.repetition_penalty)
    if config.temperature <= 0:
        return scores.argmax(-1)
    return draw(keep_top_p(keep_top_k(scores, config.top_k), config.top_p), uniform)
