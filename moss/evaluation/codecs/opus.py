"""Opus through libopus, which PyAV brings along.

16 kHz mono, voice application, complexity 10. The rest is what suits the lowest rates: packets of 60 ms, whose headers
take a third of the bits of 20 ms ones, and a constant bit rate, so that a row's rate is exactly the one it says.
Below about 9 kbit/s libopus codes 4 kHz of bandwidth only, which narrow-band scores do not notice.
libopus is under the BSD licence.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from torch import Tensor

from moss.config.evaluation import OPUS_BITS_PER_S
from moss.data.audio import FloatArray, resample
from moss.errors import EvaluationError
from moss.evaluation.codecs.interface import (
    checked_samples,
    codec_package,
    from_pcm16,
    package_version,
    to_pcm16,
    with_length,
)

_RATE_HZ, _DECODED_HZ = 16_000, 48_000
_PACKET_MS = 60
_PACKET_SAMPLES = _RATE_HZ * _PACKET_MS // 1000
_COMPLEXITY = 10


class OpusCodec:
    """One Opus setting.

    Args:
        bits_per_s: Nominal rate, 6000 to 256000.

    Raises:
        EvaluationError: PyAV is missing, or a rate that libopus does not take.
    """

    sampling_rate_hz = _RATE_HZ

    def __init__(self, bits_per_s: int) -> None:
        low, high = OPUS_BITS_PER_S
        if not low <= bits_per_s <= high:
            raise EvaluationError(f"Opus: {bits_per_s} bit/s is outside {low} to {high}; choose a rate within")
        self._av = _pyav()
        self.bits_per_s: float | None = float(bits_per_s)
        self.name = f"opus-{bits_per_s}"
        self.label = f"Opus {bits_per_s / 1000:g} kbit/s"
        self._options = {
            "application": "voip",
            "frame_duration": str(_PACKET_MS),
            "vbr": "off",
            "compression_level": str(_COMPLEXITY),
        }

    @property
    def revision(self) -> str:
        """Packages with their versions, and every setting."""
        ffmpeg = ".".join(map(str, self._av.library_versions["libavcodec"]))
        settings = ", ".join(f"{name} {value}" for name, value in self._options.items())
        rate = f"{self.bits_per_s:.0f} bit/s, {_RATE_HZ} Hz mono"
        return f"libopus of {package_version('av')} (libavcodec {ffmpeg}): {rate}, {settings}"

    def reconstruct(self, wave: Tensor) -> Tensor:
        """See `Codec.reconstruct`.

        Raises:
            DataError: the clip is empty, not mono, not float or not finite.
            EvaluationError: libopus refuses it.
        """
        samples = checked_samples(wave)
        try:
            return self._coded(samples)
        except self._av.FFmpegError as error:
            raise EvaluationError(f"{self.label}: libopus failed on {samples.shape[0]} samples: {error}") from error

    def _coded(self, samples: FloatArray) -> Tensor:
        packets, header = self._encode(samples)
        decoded = resample(self._decode(packets, header), _DECODED_HZ, _RATE_HZ)
        return with_length(decoded, samples.shape[0])

    def _encode(self, samples: FloatArray) -> tuple[list[bytes], bytes]:
        """Packets, and the header that says how many samples of delay stand before the sound."""
        encoder = self._av.CodecContext.create("libopus", "w")
        encoder.sample_rate, encoder.layout, encoder.format = _RATE_HZ, "mono", "s16"
        encoder.bit_rate, encoder.time_base = int(self.bits_per_s or 0), Fraction(1, _RATE_HZ)
        encoder.options = self._options
        encoder.open()
        size = _PACKET_SAMPLES
        # One packet more than the clip has: what is delayed must come out, too.
        count = -(-samples.shape[0] // size) + 1
        pcm = np.pad(to_pcm16(samples), (0, count * size - samples.shape[0])).reshape(count, 1, size)
        packets = []
        for i, block in enumerate(pcm):
            frame = self._av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
            frame.sample_rate, frame.pts = _RATE_HZ, i * size
            packets += [bytes(packet) for packet in encoder.encode(frame)]
        # The end would only add an empty packet: the delay is covered above.
        return packets[:count], bytes(encoder.extradata)

    def _decode(self, packets: Sequence[bytes], header: bytes) -> FloatArray:
        """Samples at 48 kHz; the decoder takes the header's delay off."""
        decoder = self._av.CodecContext.create("libopus", "r")
        decoder.extradata = header
        decoder.open()
        blocks = [frame.to_ndarray() for packet in packets for frame in decoder.decode(self._av.Packet(packet))]
        blocks += [frame.to_ndarray() for frame in decoder.decode(None)]
        return from_pcm16(np.concatenate([block.reshape(-1) for block in blocks]))


def opus_codecs(rates: Sequence[int]) -> list[OpusCodec]:
    """One codec per nominal rate in bits per second.

    Raises:
        EvaluationError: PyAV is missing, or a rate that libopus does not take.
    """
    return [OpusCodec(rate) for rate in rates]


def _pyav() -> Any:
    av = codec_package("Opus", "PyAV", "av", "audio")
    if "libopus" not in av.codecs_available:
        raise EvaluationError(f"Opus: this PyAV {av.__version__} has no libopus; install its wheel: `pip install av`")
    return av
