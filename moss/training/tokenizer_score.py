"""Held-out quality of a tokenizer while it is trained: intelligibility of reconstructions, and use of the codes."""

import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from moss.data.audio import resample
from moss.errors import ConfigError
from moss.spec import TokenizerSpec
from moss.tokenizer.codebook_health import CodebookHealth, codebook_health, count_codes
from moss.training.processes import are_several, total

if TYPE_CHECKING:
    from moss.tokenizer.interface import AudioTokenizer

logger = logging.getLogger(__name__)

SCORING_RATE_HZ = 16_000

_STOI_LONGEST_S = 600
"""Of a longer clip its beginning is scored: pystoi takes some 1.5 MB of memory a second."""
_PYSTOI_MIN_SAMPLES = 410
"""One of its frames, 256 samples at 10 kHz; with less it fails."""


class HeldoutScores:
    """Collects STOI and code counts over clips.

    Args:
        spec: Of the tokenizer.
    """

    def __init__(self, spec: TokenizerSpec) -> None:
        self._spec = spec
        self._counts = torch.zeros(spec.num_codebooks, spec.codebook_size, dtype=torch.int64)
        self.stoi: list[float] = []
        self.unscored = 0
        """Clips too short for STOI's 30 frames of speech; their codes count all the same."""

    def add(self, tokenizer: "AudioTokenizer", wave: Tensor) -> None:
        """Reconstruct one clip (N,) or (2, N) and score it.

        Raises:
            ConfigError: The package pystoi is missing.
        """
        (codes,) = tokenizer.encode([wave])
        (generated,) = tokenizer.decode([codes], [wave.shape[-1]])
        self._counts += count_codes(codes, self._spec.codebook_size)
        score = stoi(wave, generated, self._spec.sampling_rate_hz)
        if score is None:
            self.unscored += 1
        else:
            self.stoi.append(score)

    def gather(self, device: torch.device) -> None:
        """Join the scores of all processes, each of which has other clips."""
        if not are_several():
            return
        self._counts = total(self._counts.to(device)).cpu()
        sums = total(torch.tensor([sum(self.stoi), len(self.stoi), self.unscored], dtype=torch.float64, device=device))
        scored, self.unscored = int(sums[1]), int(sums[2])
        # The mean is all that is asked for.
        self.stoi = [float(sums[0]) / scored] * scored

    @property
    def health(self) -> CodebookHealth:
        """Use of each codebook over all clips."""
        return codebook_health(self._counts)

    def metrics(self) -> dict[str, float]:
        """Numbers for a logger."""
        health = self.health
        metrics = {f"used_frac/codebook_{i:02d}": used for i, used in enumerate(health.used_frac)}
        metrics |= {f"perplexity/codebook_{i:02d}": value for i, value in enumerate(health.perplexity)}
        metrics["used_frac"] = health.lowest_used_frac
        if self.stoi:
            metrics["stoi"] = float(np.mean(self.stoi))
        return metrics


def stoi(target: Tensor, generated: Tensor, sampling_rate_hz: int) -> float | None:
    """Short-time objective intelligibility at 16 kHz, not extended; None where too little speech is left to score.

    Stereo (2, N) is scored as the mean of its channels.

    Raises:
        ConfigError: The package pystoi is missing.
    """
    try:
        import pystoi
    except ModuleNotFoundError as error:
        raise ConfigError("scoring a tokenizer needs the package pystoi: pip install 'moss[eval]'") from error
    mono = [wave if wave.dim() == 1 else wave.mean(0) for wave in (target, generated)]
    pair = [resample(wave.cpu().numpy(), sampling_rate_hz, SCORING_RATE_HZ) for wave in mono]
    pair = [wave[: _STOI_LONGEST_S * SCORING_RATE_HZ] for wave in pair]
    if len(pair[0]) < _PYSTOI_MIN_SAMPLES:
        return None
    with warnings.catch_warnings():
        # pystoi warns and returns a constant when fewer than 30 frames hold speech; that constant is not a score.
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(pystoi.stoi(*pair, SCORING_RATE_HZ, extended=False))
        except RuntimeWarning:
            return None
