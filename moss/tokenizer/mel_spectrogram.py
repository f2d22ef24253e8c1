"""Magnitude mel frames of a waveform and the way back: mel inversion and Griffin-Lim.

Plain numpy in float32. Vector j is centred on sample 160 j + 80, so that eight of them cover one frame.
"""

import contextlib
import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

FloatArray = NDArray[np.float32]
ComplexArray = NDArray[np.complex64]

BLOCK_VECTORS = 12_000
"""Longer clips are worked on in blocks of as many vectors (two minutes), so that an hour does not take the memory."""
FADE_VECTORS = 8
"""Over which blocks of a synthesised clip fade into one another."""

_TINY = np.float32(1e-12)
_PHASE_SEED = 20_260_101

_BLAS_LIMIT = threading.RLock()
"""The limit is the process': of two blocks at once, the first to end would lift it for the other."""


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """BLAS on one thread: its result may change with the number of threads, and with it a code.

    Threads that want it take turns.
    """
    with _BLAS_LIMIT, _thread_pools().limit(limits=1, user_api="blas"):
        yield


@functools.cache
def _thread_pools() -> ThreadpoolController:
    """The libraries are looked for once: that takes longer than a short clip."""
    return ThreadpoolController()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MelSpectrogram:
    """Short-time spectrum with a Hann window as long as the FFT, and a mel filterbank over it."""

    hop: int
    """Samples between two vectors."""
    filterbank: FloatArray
    """(bands, bins), each row with sum 1; the FFT length is 2 * (bins - 1)."""

    @property
    def fft_length(self) -> int:
        """Samples that one vector sees."""
        return 2 * (self.filterbank.shape[1] - 1)

    def analyse(self, wave: FloatArray, vectors: int) -> FloatArray:
        """Mel magnitudes (vectors, bands) of a waveform (N,), which is padded with silence to vectors * hop samples."""
        margin = (self.fft_length - self.hop) // 2
        padded = np.pad(wave.astype(np.float32, copy=False), (margin, margin + vectors * self.hop - wave.shape[0]))
        mel = np.empty((vectors, self.filterbank.shape[0]), dtype=np.float32)
        for stop in [*range(BLOCK_VECTORS, vectors, BLOCK_VECTORS), vectors]:
            # All blocks have one size: BLAS may round a smaller one otherwise.
            start = max(0, stop - BLOCK_VECTORS)
            seen = padded[start * self.hop : (stop - 1) * self.hop + self.fft_length]
            mel[start:stop] = np.abs(self._spectrum(seen)) @ self.filterbank.T
        return mel

    def synthesise(self, mel: FloatArray, iterations: int) -> FloatArray:
        """Waveform (vectors * hop,) of mel magnitudes (vectors, bands): inversion of the filters, then Griffin-Lim.

        More than `BLOCK_VECTORS` are made in blocks, whose phases do not agree, faded into one another.
        """
        vectors, fade = mel.shape[0], FADE_VECTORS * self.hop
        rise: FloatArray = ((np.arange(fade) + 0.5) / fade).astype(np.float32)
        wave = np.zeros(vectors * self.hop, dtype=np.float32)
        start = stop = 0
        while stop < vectors:
            stop = min(start + BLOCK_VECTORS, vectors)
            block = self.griffin_lim(self.magnitudes(mel[start:stop]), iterations)
            if start:
                block[:fade] *= rise
                wave[start * self.hop :][:fade] *= 1 - rise
            wave[start * self.hop : stop * self.hop] += block
            start = stop - FADE_VECTORS
        return wave

    def magnitudes(self, mel: FloatArray, iterations: int = 20) -> FloatArray:
        """Non-negative spectrum (vectors, bins) whose mel magnitudes are close to `mel` (vectors, bands).

        Starts from the bands spread over their bins and refines by multiplicative updates (Kullback-Leibler), which
        keep it non-negative without the ringing of a pseudo-inverse.
        """
        weight = np.maximum(self.filterbank.sum(axis=0), np.float32(1e-8))
        estimate = mel @ (self.filterbank / weight)
        for _ in range(iterations):
            ratio = mel / np.maximum(estimate @ self.filterbank.T, np.float32(1e-9))
            estimate *= (ratio @ self.filterbank) / weight
        return estimate

    def griffin_lim(self, magnitudes: FloatArray, iterations: int, momentum: float = 0.99) -> FloatArray:
        """Waveform (vectors * hop,) whose short-time spectrum has about the given magnitudes (vectors, bins).

        The phases start from a fixed pseudo-random table, so the result repeats.

        Source: Perraudin, Balazs, Sondergaard, "A fast Griffin-Lim algorithm", 2013 (the momentum).
        """
        vectors = magnitudes.shape[0]
        scale = self._overlap_scale(vectors)
        spectrum = magnitudes * _start_phases(vectors, magnitudes.shape[1])
        previous: ComplexArray | None = None
        for _ in range(iterations):
            rebuilt = self._spectrum(self._overlap_add(spectrum) * scale)
            moved = rebuilt if previous is None else rebuilt + np.float32(momentum) * (rebuilt - previous)
            previous = rebuilt
            spectrum = moved * (magnitudes / np.maximum(np.abs(moved), _TINY))
        margin = (self.fft_length - self.hop) // 2
        wave: FloatArray = (self._overlap_add(spectrum) * scale)[margin : margin + vectors * self.hop]
        return wave

    def _spectrum(self, padded: FloatArray) -> ComplexArray:
        pieces = np.lib.stride_tricks.sliding_window_view(padded, self.fft_length)[:: self.hop]
        return np.fft.rfft(pieces * _window(self.fft_length), axis=1)

    def _overlap_add(self, spectrum: ComplexArray) -> FloatArray:
        pieces = np.fft.irfft(spectrum, n=self.fft_length, axis=1) * _window(self.fft_length)
        return self._sum_shifted(pieces)

    def _sum_shifted(self, pieces: FloatArray) -> FloatArray:
        """Add pieces (vectors, fft_length), each `hop` later than the one before; the FFT length is whole hops."""
        vectors, overlaps = pieces.shape[0], self.fft_length // self.hop
        total = np.zeros((vectors + overlaps - 1, self.hop), dtype=np.float32)
        for shift in range(overlaps):
            total[shift : shift + vectors] += pieces[:, shift * self.hop : (shift + 1) * self.hop]
        return total.reshape(-1)

    def _overlap_scale(self, vectors: int) -> FloatArray:
        """What undoes the two windowings; where windows hardly reach, at both ends, it stays bounded."""
        squared = np.broadcast_to(np.square(_window(self.fft_length)), (vectors, self.fft_length))
        return 1.0 / np.maximum(self._sum_shifted(squared), np.float32(1e-3))


def mel_filterbank(sampling_rate_hz: int, fft_length: int, bands: int) -> FloatArray:
    """Triangular mel filters (bands, bins) from 0 Hz to half the sampling rate, each with sum 1."""
    import librosa

    filters = librosa.filters.mel(sr=sampling_rate_hz, n_fft=fft_length, n_mels=bands, fmin=0.0)
    filterbank: FloatArray = (filters / filters.sum(axis=1, keepdims=True)).astype(np.float32)
    return filterbank


@functools.cache
def _window(length: int) -> FloatArray:
    window: FloatArray = np.hanning(length + 1)[:-1].astype(np.float32)
    window.flags.writeable = False
    return window


def _start_phases(vectors: int, bins: int) -> ComplexArray:
    angle = np.random.default_rng(_PHASE_SEED).random((vectors, bins), dtype=np.float32)
    phases: ComplexArray = np.exp(np.complex64(2j * np.pi) * angle).astype(np.complex64)
    return phases
