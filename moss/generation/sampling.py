"""The only sampler: penalty, temperature, top-k, top-p and a draw, all as pure functions of logits and numbers.

Randomness is a function of (seed, step, channel), so that a request's draws depend neither on its batch neighbours
nor on what was drawn before.
Source: MOSS-TTS moss_tts_delay/inference_utils.py @58b20a0 (filters and their order); Steele et al. 2014, SplitMix64
(the mixing function).
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moss.config.generation import SamplerConfig

_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_STEPS_AT_ONCE = 32


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's finalizer on int64 with wrap-around; right shifts must not drag the sign along."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _MIX_1
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _MIX_2
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def uniforms(seeds: Tensor, step: int | Tensor, num_channels: int) -> Tensor:
    """Numbers in [0, 1) that are a hash of seed, step and channel.

    Args:
        seeds: One a sample, int64, shape (batch,) or whatever broadcasts with the steps.
        step: Counter of the sample's own decoding.
        num_channels: Numbers for each sample.

    Returns:
        fp32, multiples of 2**-24, shape (batch, channels), or (..., channels).
    """
    channels = torch.arange(1, num_channels + 1, device=seeds.device) * _GOLDEN
    keys = _mixed(_mixed(seeds + _GOLDEN) + step * 2 + 1)
    bits = _mixed(keys.unsqueeze(-1) + channels)
    return ((bits >> 40) & ((1 << 24) - 1)).float() * 2.0**-24


class Uniforms:
    """`uniforms` of a batch, step after step; hashed for many steps at once, as each call has its price.

    Attributes:
        seeds: Of the samples that go on.
    """

    def __init__(self, seeds: Tensor, num_channels: int, samplers: Iterable[SamplerConfig]) -> None:
        """Begin with no step made.

        Args:
            seeds: One a sample, int64, shape (batch,).
            num_channels: Numbers for each sample and step.
            samplers: All that draw with them; where all are greedy nobody looks at them, and they are 0.
        """
        self.seeds, self._num_channels = seeds, num_channels
        self._greedy = all(sampler.temperature <= 0 for sampler in samplers)
        self._first, self._made = 0, torch.zeros(len(seeds), 0, num_channels, device=seeds.device)

    def at(self, step: int) -> Tensor:
        """Numbers of a step, fp32, shape (batch, channels)."""
        if self._greedy:
            return self._made.new_zeros(()).expand(len(self.seeds), self._num_channels)
        if not self._first <= step < self._first + self._made.shape[1]:
            steps = torch.arange(step, step + _STEPS_AT_ONCE, device=self.seeds.device)
            self._first, self._made = step, uniforms(self.seeds.unsqueeze(1), steps, self._num_channels)
        return self._made[:, step - self._first]

    def keep(self, rows: Tensor) -> None:
        """Go on with some samples only."""
        self.seeds, self._made = self.seeds[rows], self._made[rows]


class SeenCodes:
    """Which codes each sample has had in each codebook: what the repetition penalty applies to."""

    def __init__(self, codes: Tensor, size: int, windows: Sequence[int], mask: Tensor | None = None) -> None:
        """Start from what stands in the prompt.

        Args:
            codes: Shape (batch, frames, codebooks); ids outside [0, size) are no codes and count for nothing.
            size: Ids of a codebook.
            windows: Of each codebook: only the last so many frames count; 0 counts all.
            mask: Frames to leave out where False, shape (batch, frames).
        """
        batch, _, codebooks = codes.shape
        self._size, self._window = size, max(windows)
        # Only where codebooks differ: how many of the kept frames count in each.
        differ = len(set(windows)) > 1
        self._windows = torch.tensor(list(windows), device=codes.device) if differ else None
        self._recent = codes[:, :0]
        self._seen = torch.zeros(batch, codebooks, size + 1, dtype=torch.bool, device=codes.device)
        self.add(codes if mask is None else codes.masked_fill(~mask.unsqueeze(-1), size))

    @property
    def mask(self) -> Tensor:
        """Bool, shape (batch, codebooks, size)."""
        return self._seen[..., :-1]

    def add(self, codes: Tensor) -> None:
        """Take new frames, shape (batch, frames, codebooks)."""
        if not self._window:
            self._mark(codes)
            return
        self._recent = recent = torch.cat([self._recent, codes], dim=1)[:, -self._window :]
        if self._windows is None:
            self._seen.zero_()
        else:
            unlimited = self._windows == 0
            self._seen &= unlimited.unsqueeze(-1)
            self._mark(codes.masked_fill(~unlimited, self._size))
            age = torch.arange(recent.shape[1], 0, -1, device=codes.device).unsqueeze(-1)
            recent = recent.masked_fill(age > self._windows, self._size)
        self._mark(recent)

    def keep(self, rows: Tensor) -> None:
        """Go on with some samples only."""
        self._seen, self._recent = self._seen[rows], self._recent[rows]

    def _mark(self, codes: Tensor) -> None:
        valid = torch.where((codes < 0) | (codes > self._size), self._size, codes)
        self._seen.scatter_(2, valid.transpose(1, 2), True)


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


class ChannelSampler:
    """Draws several channels at once: one pass for all that have the same filters and penalty.

    Attributes:
        penalised: Whether any channel looks at what was seen.
        windows: Frames that count as seen, of each channel; see `SeenCodes`.
    """

    def __init__(self, samplers: Sequence[SamplerConfig], device: torch.device) -> None:
        """Sort the channels by their settings.

        Args:
            samplers: One for each channel, in order.
            device: Of the logits.
        """
        self.penalised = any(sampler.repetition_penalty != 1.0 for sampler in samplers)
        self.windows = [sampler.penalty_window for sampler in samplers]
        groups: dict[SamplerConfig, list[int]] = {}
        for channel, sampler in enumerate(samplers):
            # A pass can have several temperatures, and the windows have done their work before.
            groups.setdefault(replace(sampler, temperature=1.0, penalty_window=0), []).append(channel)
        self._passes = [_Pass.of(channels, samplers, device) for channels in groups.values()]

    def sample(self, logits: Tensor, uniform: Tensor, seen: Tensor | None = None, first: int = 0) -> Tensor:
        """Draw ids for a run of channels; see `sample`.

        Args:
            logits: Shape (batch, channels, ids).
            uniform: Shape (batch, channels).
            seen: Shape (batch or 1, channels, ids).
            first: Channel with which the run begins.

        Returns:
            Shape (batch, channels).
        """
        count = logits.shape[1]
        if len(self._passes) == 1:
            return self._passes[0].sample(logits, uniform, seen, first, first + count)
        ids = torch.empty_like(uniform, dtype=torch.long)
        for one in self._passes:
            start, end = bisect_left(one.channels, first), bisect_left(one.channels, first + count)
            if start < end:
                places = one.places[start:end] - first
                history = None if seen is None else seen[:, places]
                ids[:, places] = one.sample(logits[:, places], uniform[:, places], history, start, end)
        return ids


@dataclass(frozen=True, slots=True)
class _Pass:
    """Channels of equal settings but for their temperature.

    Attributes:
        config: What they have in common, the temperature included unless `temperatures` says otherwise.
        channels: Their numbers, rising.
        places: The same on the device.
        temperatures: One for each, where they differ.
    """

    config: SamplerConfig
    channels: list[int]
    places: Tensor
    temperatures: Tensor | None

    @classmethod
    def of(cls, channels: list[int], samplers: Sequence[SamplerConfig], device: torch.device) -> "_Pass":
        """Some of all channels."""
        own = [samplers[channel].temperature for channel in channels]
        temperatures = torch.tensor(own, device=device) if len(set(own)) > 1 else None
        return cls(samplers[channels[0]], channels, torch.tensor(channels, device=device), temperatures)

    def sample(self, logits: Tensor, uniform: Tensor, seen: Tensor | None, start: int, end: int) -> Tensor:
        """Draw the channels from the `start`-th to the `end`-th of this pass."""
        temperatures = None if self.temperatures is None else self.temperatures[start:end]
        return sample(logits, self.config, uniform, seen, temperatures)
