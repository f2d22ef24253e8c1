"""How many codes of each codebook are in use, and how evenly."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class CodebookHealth:
    """Use of each codebook over a set of frames, first codebook first."""

    frames: int
    used_frac: tuple[float, ...]
    """Share of a codebook's entries that occur at least once."""
    perplexity: tuple[float, ...]
    """exp of the entropy of the entries' frequencies: how many evenly used codes would carry as much."""

    @property
    def lowest_used_frac(self) -> float:
        """Of the codebook that is used least."""
        return min(self.used_frac)


def count_codes(codes: Tensor, codebook_size: int) -> Tensor:
    """Occurrences (codebooks, codebook_size) int64 of codes (..., codebooks) in [0, codebook_size)."""
    flat = codes.flatten(0, -2).T
    counts = torch.zeros(flat.shape[0], codebook_size, dtype=torch.int64, device=codes.device)
    return counts.scatter_add_(1, flat, torch.ones_like(flat))


def codebook_health(counts: Tensor) -> CodebookHealth:
    """Summarise occurrences (codebooks, codebook_size) of at least one frame."""
    frames = int(counts[0].sum())
    assert frames > 0, "codebook health needs at least one frame"
    frequencies = counts.double() / frames
    entropy = -torch.special.xlogy(frequencies, frequencies).sum(1)
    used = (counts > 0).double().mean(1)
    return CodebookHealth(frames, tuple(used.tolist()), tuple(entropy.exp().tolist()))
