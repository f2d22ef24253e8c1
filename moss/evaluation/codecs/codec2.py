"""Codec 2, a parametric coder for speech at 8 kHz, through the package pycodec2.

Codec 2 is under the LGPL 2.1 and pycodec2, which brings it as a shared library, under the BSD licence; the package is
an extra and no part of this one.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from moss.config.evaluation import CODEC2_MODES
from moss.data.audio import resample
from moss.errors import EvaluationError
from moss.evaluation.codecs.interface import (
    checked_samples,
    codec_package,
    from_pcm16,
    package_version,
    to_pcm16,
    with_length,
)

_RATE_HZ, _CODED_HZ = 16_000, 8_000

_PACKAGE_MODES = {mode: int(mode.removesuffix("C")) for mode in CODEC2_MODES}
"""Mode -> what pycodec2 calls it."""

_DELAY_SAMPLES, _DELAY_SAMPLES_700C = 160, 240
"""At 8 kHz. The pitch window of 40 ms is centred 20 ms before the newest sample, and synthesis ends at that centre;
mode 700C interpolates from the model of the packet before, 10 ms earlier still. On four recorded clips STOI is highest
at exactly these shifts."""


class Codec2Codec:
    """One Codec 2 mode; 16 kHz is resampled to 8 kHz and back (soxr).

    Args:
        mode: "3200", "2400", "1600", "1400", "1300", "1200" or "700C": bits per second.

    Raises:
        EvaluationError: pycodec2 is missing, or there is no such mode.
    """

    sampling_rate_hz = _RATE_HZ

    def __init__(self, mode: str) -> None:
        if mode not in _PACKAGE_MODES:
            raise EvaluationError(f"Codec 2: mode {mode!r}, expected one of {list(CODEC2_MODES)}")
        self._package = codec_package("Codec 2", "pycodec2", "pycodec2", "eval")
        self._mode = mode
        self.name = f"codec2-{mode.lower()}"
        self.label = f"Codec 2 {mode}"
        coder = self._package.Codec2(_PACKAGE_MODES[mode])
        self._packet_samples = coder.samples_per_frame()
        self.bits_per_s: float | None = coder.bits_per_frame() * _CODED_HZ / self._packet_samples
        self._delay = _DELAY_SAMPLES_700C if mode == "700C" else _DELAY_SAMPLES

    @property
    def revision(self) -> str:
        """Packages with their versions, and every setting."""
        return f"{package_version('pycodec2')}: mode {self._mode}, {_CODED_HZ} Hz mono, {package_version('soxr')} HQ"

    def reconstruct(self, wave: Tensor) -> Tensor:
        """See `Codec.reconstruct`; frequencies above 4 kHz are lost."""
        samples = checked_samples(wave)
        narrow = to_pcm16(resample(samples, _RATE_HZ, _CODED_HZ))
        # A coder remembers what it heard, so every clip gets a new one.
        coder, size = self._package.Codec2(_PACKAGE_MODES[self._mode]), self._packet_samples
        count = -(-(narrow.shape[0] + self._delay) // size)
        packets = np.pad(narrow, (0, count * size - narrow.shape[0])).reshape(count, size)
        decoded = np.concatenate([coder.decode(coder.encode(packet)) for packet in packets])
        wide = resample(from_pcm16(decoded[self._delay :]), _CODED_HZ, _RATE_HZ)
        return with_length(wide, samples.shape[0])


def codec2_codecs(modes: Sequence[str]) -> list[Codec2Codec]:
    """One codec per mode.

    Raises:
        EvaluationError: pycodec2 is missing, or there is no such mode.
    """
    return [Codec2Codec(mode) for mode in modes]
