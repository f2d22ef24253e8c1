"""Fit the baseline tokenizer: PCA of compressed mel frames, one k-means per codebook on what is left over, and the
linear maps by which the decoder estimates a frame from quantised neighbours.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moss.errors import DataError
from moss.tokenizer.mel_rvq import MelRvqWeights, compressed_frames, with_neighbours
from moss.tokenizer.mel_spectrogram import FloatArray, MelSpectrogram, mel_filterbank

log = logging.getLogger(__name__)

_FIT_THREADS = 2
"""With two threads, sums of partial centres do not depend on which thread ends first; with more they may."""

_RIDGE = 1e-3
"""Of the mean variance of a value."""

SAMPLING_RATE_HZ = 16_000
HOP = 160
FFT_LENGTH = 640
BANDS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """How the weights are fitted; the defaults are those of the shipped file."""

    num_codebooks: int = 16
    codebook_size: int = 1024
    width: int = 192
    """Principal components kept of the 640 values of a frame."""
    exponent: float = 0.2
    iterations: int = 15
    """Lloyd iterations of each k-means."""
    seed: int = 0


def fit(waves: Iterable[FloatArray], settings: FitSettings) -> MelRvqWeights:
    """Fit the tokenizer on waveforms, each (N,) float32 at 16 kHz.

    The same waveforms, settings, library versions and machine give the same weights.

    Args:
        waves: Consumed once.
        settings: Sizes and seed.

    Raises:
        DataError: Fewer frames than codebook entries, or wider than a frame.
    """
    from threadpoolctl import threadpool_limits

    spectrogram = MelSpectrogram(hop=HOP, filterbank=mel_filterbank(SAMPLING_RATE_HZ, FFT_LENGTH, BANDS))
    with threadpool_limits(limits=_FIT_THREADS):
        rows = [compressed_frames(wave, spectrogram, settings.exponent) for wave in waves]
        frames = np.concatenate(rows) if rows else np.zeros((0, 8 * BANDS), dtype=np.float32)
        _check_enough(frames, settings)
        mean, basis = _principal_components(frames, settings.width)
        projected = ((frames - mean) @ basis).astype(np.float32, copy=False)
        codebooks, codes = _residual_kmeans(projected, settings)
        smoothing = _smoothing(projected, codebooks, codes, np.cumsum([len(row) for row in rows])[:-1])
    return MelRvqWeights(
        sampling_rate_hz=SAMPLING_RATE_HZ,
        hop=HOP,
        exponent=settings.exponent,
        filterbank=spectrogram.filterbank,
        mean=mean,
        basis=basis,
        codebooks=codebooks,
        smoothing=smoothing,
    )


def _principal_components(frames: FloatArray, width: int) -> tuple[FloatArray, FloatArray]:
    """Mean (F,) and the `width` strongest directions (F, width); the sign of a direction is fixed."""
    mean = frames.mean(axis=0, dtype=np.float64)
    centred = frames - mean.astype(np.float32)
    _, vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64) / len(frames))
    basis = vectors[:, ::-1][:, :width]
    basis = basis * np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(width)])
    return mean.astype(np.float32), np.ascontiguousarray(basis, dtype=np.float32)


def _residual_kmeans(projected: FloatArray, settings: FitSettings) -> tuple[NDArray[np.float16], NDArray[np.int32]]:
    """Codebooks (codebooks, codebook_size, D), and codes (codebooks, frames) of the frames (frames, D).

    Each codebook is rounded to float16 before the next one is fitted to what it leaves over.
    """
    from sklearn.cluster import KMeans

    residual = projected.copy()
    codebooks, codes = [], []
    for k in range(settings.num_codebooks):
        model = KMeans(
            n_clusters=settings.codebook_size,
            init="random",
            n_init=1,
            max_iter=settings.iterations,
            tol=0.0,
            random_state=settings.seed + k,
        )
        labels = model.fit_predict(residual)
        entries = model.cluster_centers_.astype(np.float16)
        residual -= entries.astype(np.float32)[labels]
        codebooks.append(entries)
        codes.append(labels)
        left_frac = float(np.square(residual).mean()) / float(np.square(projected).mean())
        log.info("codebook %d of %d: %.1f %% of the variance left", k + 1, settings.num_codebooks, 100 * left_frac)
    return np.stack(codebooks), np.stack(codes)


def _smoothing(
    projected: FloatArray, codebooks: NDArray[np.float16], codes: NDArray[np.int32], borders: NDArray[np.int64]
) -> NDArray[np.float16]:
    """Maps (codebooks, 3 D, D) by ridge regression of frames on the quantised frame and its neighbours.

    Args:
        projected: True frames (frames, D) of all utterances, one after the other.
        codebooks: (codebooks, codebook_size, D).
        codes: (codebooks, frames).
        borders: Where utterances begin, the first excepted; neighbours do not reach across.
    """
    sums = np.zeros_like(projected)
    maps = []
    for entries, labels in zip(codebooks, codes, strict=True):
        sums += entries.astype(np.float32)[labels]
        windows = np.concatenate([with_neighbours(part) for part in np.split(sums, borders)])
        gram = (windows.T @ windows).astype(np.float64)
        gram[np.diag_indices_from(gram)] += _RIDGE * np.trace(gram) / len(gram)
        maps.append(np.linalg.solve(gram, (windows.T @ projected).astype(np.float64)).astype(np.float16))
    return np.stack(maps)


def _check_enough(frames: FloatArray, settings: FitSettings) -> None:
    if len(frames) < settings.codebook_size:
        raise DataError(
            f"{len(frames)} frames ({len(frames) * 0.08:.0f} s of audio) are too few for {settings.codebook_size} "
            "entries a codebook; give more audio or a smaller --codebook-size"
        )
    if not 1 <= settings.width <= frames.shape[1]:
        raise DataError(f"width: expected 1 to {frames.shape[1]}, got {settings.width}")
