"""Spectral distances of a reconstruction from its original: mel and STFT, both at 16 kHz; 0 for identical clips.

Two scales are added up: windows of 2048 and 512 samples, a quarter of it between two positions, the square root of a
periodic Hann window, positions centred by mirroring the ends. At each scale the mean absolute difference of magnitudes
and that of log10 of squared magnitudes, which are clamped to 1e-5 before, count alike.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from moss.errors import EvaluationError
from moss.evaluation.metrics.signal import SCORING_RATE_HZ, Wave, check_pair

SCALES = ((2048, 150), (512, 80))
"""(window in samples, mel bands)."""
CLAMP = 1e-5
_BLOCK_POSITIONS = 4096
"""As many at a time, so that the memory does not grow with 25 times the clip's length."""
MEL_SILENCE, STFT_SILENCE = 12.0, 16.6
"""What saying nothing scores on an average held-out clip of the embedded corpus: the floor of a failed clip."""


def mel_distance(reference: Wave, degraded: Wave) -> float:
    """Distance of mel magnitudes, 150 and 80 Slaney bands from 0 Hz to 8 kHz.

    Args:
        reference: Samples (N,) at 16 kHz.
        degraded: Samples (M,) at 16 kHz.

    Raises:
        EvaluationError: a clip is silent, empty, not finite or not longer than half a window (64 ms).

    Source: MOSS-Audio-Tokenizer-Eval metrics/core.py @b8e23bf.
    """
    return _distance(reference, degraded, "mel distance", mel=True)


def stft_distance(reference: Wave, degraded: Wave) -> float:
    """The same of the magnitudes of all bins; arguments and errors as `mel_distance`.

    The published harness computes it at 24 kHz; here it is at 16 kHz like everything else, so values differ.

    Raises:
        EvaluationError: a clip is silent, empty, not finite or not longer than half a window (64 ms).

    Source: MOSS-Audio-Tokenizer-Eval @b8e23bf (the definition, not the rate).
    """
    return _distance(reference, degraded, "STFT distance", mel=False)


def magnitude_distance(reference: NDArray[np.float64], degraded: NDArray[np.float64]) -> float:
    """Mean absolute difference of two arrays of magnitudes, plus that of their clamped squares on a log10 scale."""
    linear = np.abs(reference - degraded).mean()
    loud, quiet = (2 * np.log10(np.maximum(values, CLAMP)) for values in (reference, degraded))
    return float(linear + np.abs(loud - quiet).mean())


def _distance(reference: Wave, degraded: Wave, name: str, *, mel: bool) -> float:
    reference, degraded = check_pair(reference, degraded, name)
    longest = max(window for window, _ in SCALES)
    if reference.size <= longest // 2:
        raise EvaluationError(
            f"{name}: {reference.size} samples are too few, at least {longest // 2 + 1} (64 ms) are needed"
        )
    total = 0.0
    for window, bands in SCALES:
        pair = [_pieces(wave, window) for wave in (reference, degraded)]
        positions = pair[0].shape[0]
        for start in range(0, positions, _BLOCK_POSITIONS):
            blocks = [pieces[start : start + _BLOCK_POSITIONS] for pieces in pair]
            spectra = [np.abs(np.fft.rfft(pieces * _taper(window), axis=1)) for pieces in blocks]
            if mel:
                spectra = [spectrum @ _mel_filters(window, bands).T for spectrum in spectra]
            total += magnitude_distance(*spectra) * (blocks[0].shape[0] / positions)
    return total


def _pieces(wave: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """What each position sees (positions, window), a view."""
    padded = np.pad(wave, window // 2, mode="reflect")
    return np.lib.stride_tricks.sliding_window_view(padded, window)[:: window // 4]


@cache
def _taper(window: int) -> NDArray[np.float64]:
    """Square root of a periodic Hann window, which is a half period of a sine."""
    return np.sin(np.pi * np.arange(window) / window)


@cache
def _mel_filters(window: int, bands: int) -> NDArray[np.float64]:
    import librosa

    filters = librosa.filters.mel(sr=SCORING_RATE_HZ, n_fft=window, n_mels=bands, fmin=0.0, fmax=SCORING_RATE_HZ / 2)
    return np.asarray(filters, dtype=np.float64)
