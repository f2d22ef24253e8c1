"""Mel magnitudes and Griffin-Lim with nothing quantised: the bound of every tokenizer that is built like `mel_rvq`."""

from torch import Tensor

from moss.errors import EvaluationError
from moss.evaluation.codecs.interface import checked_samples, package_version, with_length
from moss.tokenizer.mel_rvq import VECTORS_PER_FRAME, MelRvqWeights, shipped_weights
from moss.tokenizer.mel_spectrogram import one_blas_thread

DEFAULT_ITERATIONS = 32
"""As `mel_rvq`."""


class MelGriffinLim:
    """The analysis and synthesis of the shipped `mel_rvq` without its projection, codebooks and smoothing.

    Args:
        iterations: Of Griffin-Lim.

    Raises:
        EvaluationError: fewer than one iteration.
    """

    name = "mel-griffin-lim"
    label = "mel + Griffin-Lim (not quantised)"
    bits_per_s: float | None = None

    def __init__(self, iterations: int = DEFAULT_ITERATIONS) -> None:
        if iterations < 1:
            raise EvaluationError(f"mel + Griffin-Lim: {iterations} iterations, expected at least 1")
        weights = MelRvqWeights.load(shipped_weights())
        self.sampling_rate_hz = weights.sampling_rate_hz
        self._spectrogram = weights.spectrogram()
        self._iterations = iterations

    @property
    def revision(self) -> str:
        """The analysis, the iterations and the library that computes them."""
        bands, hop = self._spectrogram.filterbank.shape[0], self._spectrogram.hop
        return (
            f"{package_version('numpy')}: {bands} mel bands every {hop} samples of {self.sampling_rate_hz} Hz, FFT "
            f"{self._spectrogram.fft_length}, {self._iterations} iterations"
        )

    def reconstruct(self, wave: Tensor) -> Tensor:
        """See `Codec.reconstruct`."""
        samples, spectrogram = checked_samples(wave), self._spectrogram
        frames = -(-samples.shape[0] // (spectrogram.hop * VECTORS_PER_FRAME))
        with one_blas_thread():
            mel = spectrogram.analyse(samples, frames * VECTORS_PER_FRAME)
            decoded = spectrogram.synthesise(mel, self._iterations)
        return with_length(decoded, samples.shape[0])
