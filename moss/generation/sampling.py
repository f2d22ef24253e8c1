"""The only sampler: penalty, temperature, top-k, top-p and a draw, all as pure functions of logits and numbers.

Randomness is a function of (seed, step, channel), so that a request's draws depend neither on its batch neighbours
nor on what was drawn before.
Source: MOSS-TTS moss_tts_delay/inference_utils.py @58b20a0 (filters and their order); Steele et al. 2014, SplitMix64
(the mixing function).
"""

import torch
from torch import Tensor

from moss.config.generation import SamplerConfig

_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's finalizer on int64 with wrap-around; right shifts must not drag the sign along."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _MIX_1
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _MIX_2
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def uniforms(seeds: Tensor, step: int, num_channels: int) -> Tensor:
    """Numbers in [0, 1) that are a hash of seed, step and channel.

    Args:
        seeds: One a sample, int64, shape (batch,).
        step: Counter of the sample's own decoding.
        num_channels: Numbers for each sample.

    Returns:
        fp32, multiples of 2**-24, shape (batch, channels).
    """
    channels = torch.arange(1, num_channels + 1, device=seeds.device) * _GOLDEN
    keys = _mixed(_mixed(seeds + _GOLDEN) + step * 2 + 1)
    bits = _mixed(keys.unsqueeze(1) + channels)
    return ((bits >> 40) & ((1 << 24) - 1)).float() * 2.0**-24


class SeenCodes:
    """Which codes each sample has had in each codebook: what the repetition penalty applies to."""

    def __init__(self, codes: Tensor, size: int, window: int = 0, mask: Tensor | None = None) -> None:
        """Start from what stands in the prompt.

        Args:
            codes: Shape (batch, frames, codebooks); ids outside [0, size) are no codes and count for nothing.
            size: Ids of a codebook.
            window: Only the last so many frames count; 0 counts all.
            mask: Frames to leave out where False, shape (batch, frames).
        """
        batch, _, codebooks = codes.shape
        codes = codes if mask is None else codes.masked_fill(~mask.unsqueeze(-1), size)
        self._size, self._window = size, window
        self._recent = codes[:, max(0, codes.shape[1] - window) :] if window else codes[:, :0]
        empty = torch.zeros(batch, codebooks, size + 1, dtype=torch.bool, device=codes.device)
        self._seen = self._marked(empty, self._recent if window else codes)

    @property
    def mask(self) -> Tensor:
        """Bool, shape (batch, codebooks, size)."""
        return self._seen[..., :-1]

    def add(self, codes: Tensor) -> None:
        """Take new frames, shape (batch, frames, codebooks)."""
        if self._window:
            self._recent = torch.cat([self._recent, codes], dim=1)[:, -self._window :]
            self._seen = self._marked(torch.zeros_like(self._seen), self._recent)
        else:
            self._seen = self._marked(self._seen, codes)

    def keep(self, rows: Tensor) -> None:
        """Go on with some samples only."""
        self._seen, self._recent = self._seen[rows], self._recent[rows]

    def _marked(self, seen: Tensor, codes: Tensor) -> Tensor:
        valid = torch.where((codes < 0) | (codes > self._size), self._size, codes)
        return seen.scatter(2, valid.transpose(1, 2), True)


def scale(logits: Tensor, temperature: float) -> Tensor:
    """Logits over temperature; a temperature of 0 or less (greedy) leaves them as they are."""
    return logits if temperature <= 0 or temperature == 1 else logits / temperature


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


def keep_top_k(logits: Tensor, top_k: int, *, ties: bool = False) -> Tensor:
    """Set all but the k largest logits to -inf; 0 keeps all.

    Args:
        logits: Shape (..., ids).
        top_k: How many.
        ties: Also keep what equals the k-th largest, as the published Local and Realtime code does; without, exactly
            k remain.
    """
    if top_k <= 0 or top_k >= logits.shape[-1]:
        return logits
    values, ids = logits.topk(top_k, dim=-1)
    if ties:
        return logits.masked_fill(logits < values[..., -1:], float("-inf"))
    return torch.full_like(logits, float("-inf")).scatter(-1, ids, values)


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Set the unlikely tail to -inf; the id at which the sum of probabilities crosses `top_p` remains."""
    if top_p >= 1.0:
        return logits
    ordered, ids = logits.sort(dim=-1, descending=True)
    return logits.masked_fill(
        torch.zeros_like(ids, dtype=torch.bool).scatter(-1, ids, _tail(ordered, top_p)), -torch.inf
    )


def _tail(ordered: Tensor, top_p: float) -> Tensor:
    """What top-p rules out among logits in falling order."""
    probabilities = ordered.softmax(-1)
    # The published code compares the running sum of the ids before; the first id always stays.
    cut = probabilities.cumsum(-1) - probabilities > top_p
    cut[..., 0] = False
    return cut


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


def sample(
    logits: Tensor,
    config: SamplerConfig,
    uniform: Tensor,
    seen: Tensor | None = None,
    temperatures: Tensor | None = None,
) -> Tensor:
    """Draw ids from raw logits: temperature, repetition penalty, top-k, top-p, draw.

    Args:
        logits: Shape (..., ids).
        config: Temperature, filters, penalty.
        uniform: Numbers in [0, 1), shape (...).
        seen: Bool, broadcastable to the logits: what the repetition penalty applies to.
        temperatures: Take the place of the configured one, broadcastable to (...); 0 or less is greedy there.
    """
    scores = logits
    if seen is not None:
        # Scaling by a positive temperature before or after is the same.
        scores = penalise_seen(scores, seen, config.repetition_penalty)
    if temperatures is None:
        return (
            scores.argmax(-1) if config.temperature <= 0 else _drawn(scale(scores, config.temperature), config, uniform)
        )
    warm = temperatures > 0
    scaled = scores / torch.where(warm, temperatures, 1.0).unsqueeze(-1)
    return torch.where(warm, _drawn(scaled, config, uniform), scores.argmax(-1))


def _drawn(scores: Tensor, config: SamplerConfig, uniform: Tensor) -> Tensor:
    """Filter and draw; what top-k leaves is sorted already, so the rest works on k ids only."""
    if not 0 < config.top_k < scores.shape[-1]:
        return draw(keep_top_p(scores, config.top_p), uniform)
    ordered, ids = scores.topk(config.top_k, dim=-1)
    if config.top_p < 1.0:
        ordered = ordered.masked_fill(_tail(ordered, config.top_p), float("-inf"))
    return ids.gather(-1, draw(ordered, uniform).unsqueeze(-1)).squeeze(-1)
