"""Read and write recordings: any container to float32 mono at a wanted rate.

soundfile reads what libsndfile knows (wav, flac, ogg, opus, mp3, ...), the `g722` package reads raw G.722, PyAV reads
the rest (m4a, aac, wma, webm, ...) where it is installed. Decoded audio is never written back to disk. A failure here
is always a `DataError` that begins with the path.
"""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moss.data.files import write_bytes
from moss.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

FloatArray = npt.NDArray[np.float32]

PYAV_SUFFIXES = {".m4a", ".mp4", ".m4b", ".mov", ".aac", ".wma", ".webm", ".mka", ".mkv", ".amr", ".ac3", ".3gp"}
"""Containers that libsndfile does not read."""

SOUNDFILE_SUFFIXES = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".w64", ".caf"}

AUDIO_SUFFIXES = SOUNDFILE_SUFFIXES | PYAV_SUFFIXES | {".g722"}
"""What a folder scan takes for a recording."""

REFERENCE_DBFS, MAX_GAIN_DB = -20.0, 3.0
"""Level of voice clips in the published models, and how far a clip is moved towards it."""

_G722_RATE_HZ = 16000
_G722_BITS_PER_S = 64000


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a recording is, before any conversion."""

    sampling_rate_hz: int
    channels: int
    num_samples: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.num_samples / self.sampling_rate_hz


def read_audio(path: Path | str) -> tuple[FloatArray, int]:
    """Decode a whole recording at its own rate.

    Returns:
        Samples, float32 of shape (samples, channels), nominally within -1..1; and the rate in Hz.

    Raises:
        DataError: Missing, empty, corrupt, or in a container that needs the `audio` extra.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if size == 0:
        raise DataError(f"{path}: empty file (0 bytes)")
    suffix = path.suffix.lower()
    if suffix == ".g722":
        samples, rate_hz = _read_g722(path)
    elif suffix in PYAV_SUFFIXES:
        samples, rate_hz = _read_pyav(path)
    else:
        samples, rate_hz = _read_soundfile(path)
    if samples.shape[0] == 0:
        raise DataError(f"{path}: zero duration: the file holds no samples")
    return samples, rate_hz


def audio_info(path: Path | str) -> AudioInfo:
    """Rate, channels and length of a recording (G.722 and PyAV containers are decoded to learn them).

    Raises:
        DataError: As `read_audio`.
    """
    path = Path(path)
    if path.suffix.lower() in SOUNDFILE_SUFFIXES and path.is_file() and path.stat().st_size:
        import soundfile

        try:
            info = soundfile.info(str(path))
        except soundfile.LibsndfileError as error:
            raise DataError(f"{path}: corrupt or unknown audio: {error.error_string}") from error
        return AudioInfo(info.samplerate, info.channels, info.frames)
    samples, rate_hz = read_audio(path)
    return AudioInfo(rate_hz, samples.shape[1], samples.shape[0])


def load_audio(path: Path | str, sampling_rate_hz: int, *, max_channels: int | None = 2) -> "Tensor":
    """Decode, mix the channels by their mean, and resample (soxr, HQ).

    Args:
        path: Any recording `read_audio` reads.
        sampling_rate_hz: Wanted rate.
        max_channels: More channels than this are an error, since the mean of unknown channels is not speech one can
            vouch for; None takes any number.

    Returns:
        float32 tensor of shape (samples,).

    Raises:
        DataError: As `read_audio`; too many channels; samples that are not finite.
    """
    import torch

    samples, rate_hz = read_audio(path)
    channels = samples.shape[1]
    if max_channels is not None and channels > max_channels:
        raise DataError(f"{path}: {channels} channels, at most {max_channels} are mixed down; pass the one with speech")
    if not np.isfinite(samples).all():
        raise DataError(f"{path}: non-finite samples (NaN or infinity)")
    mono = samples[:, 0] if channels == 1 else samples.mean(axis=1, dtype=np.float32)
    return torch.from_numpy(resample(np.ascontiguousarray(mono), rate_hz, sampling_rate_hz))


def resample(wave: FloatArray, from_hz: int, to_hz: int) -> FloatArray:
    """Change the rate of a mono wave, (samples,) to (samples',), with soxr's HQ filter; equal rates copy nothing."""
    if from_hz == to_hz:
        return wave
    import soxr

    resampled: FloatArray = soxr.resample(wave, from_hz, to_hz, quality="HQ").astype(np.float32, copy=False)
    return resampled


def normalise_loudness(
    wave: "Tensor", target_dbfs: float = REFERENCE_DBFS, max_gain_db: float = MAX_GAIN_DB
) -> "Tensor":
    """Bring a voice clip towards the level the published models expect, by at most `max_gain_db` either way.

    Args:
        wave: Shape (samples,); silence stays as it is.
        target_dbfs: RMS level in dB relative to full scale.
        max_gain_db: Bound of the gain.

    Source: MOSS-TTS moss_tts_delay/processing_moss_tts.py:756 @58b20a0.
    """
    rms = float(wave.square().mean().sqrt())
    if rms == 0.0:
        return wave
    gain_db = max(-max_gain_db, min(max_gain_db, target_dbfs - 20 * math.log10(rms)))
    return wave * (10 ** (gain_db / 20))


def write_wav(path: Path | str, wave: "Tensor | FloatArray", sampling_rate_hz: int) -> None:
    """Write a mono wave, shape (samples,), as 16-bit PCM, atomically; values beyond -1..1 are clipped.

    Raises:
        DataError: Not one-dimensional, not finite, or the disk is full.
    """
    import soundfile

    samples = wave if isinstance(wave, np.ndarray) else wave.detach().cpu().numpy()
    if samples.ndim != 1:
        raise DataError(f"{path}: expected a mono wave of shape (samples,), got {samples.shape}")
    if not np.isfinite(samples).all():
        raise DataError(f"{path}: non-finite samples (NaN or infinity)")
    buffer = io.BytesIO()
    clipped = np.clip(samples.astype(np.float32), -1.0, 1.0)
    soundfile.write(buffer, clipped, sampling_rate_hz, format="WAV", subtype="PCM_16")
    write_bytes(path, buffer.getvalue())


def _read_soundfile(path: Path) -> tuple[FloatArray, int]:
    import soundfile

    try:
        samples, rate_hz = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        reason = getattr(error, "error_string", None) or str(error)
        raise DataError(f"{path}: corrupt or unknown audio: {reason}") from error
    return samples, rate_hz


def _read_g722(path: Path) -> tuple[FloatArray, int]:
    from G722 import G722

    decoded = G722(_G722_RATE_HZ, _G722_BITS_PER_S).decode(path.read_bytes())
    samples = np.frombuffer(decoded, dtype=np.int16).astype(np.float32) / 32768.0
    return samples[:, None], _G722_RATE_HZ


def _read_pyav(path: Path) -> tuple[FloatArray, int]:
    try:
        import av
    except ImportError as error:
        raise DataError(
            f"{path}: {path.suffix} needs PyAV, which is not installed; run `pip install 'moss[audio]'` or convert the "
            "file to wav or flac"
        ) from error
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise DataError(f"{path}: no audio stream")
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
            blocks = []
            for frame in container.decode(stream):
                blocks += [block.to_ndarray() for block in resampler.resample(frame)]
            blocks += [block.to_ndarray() for block in resampler.resample(None)]
            rate_hz, channels = stream.rate, stream.channels
    except av.FFmpegError as error:
        raise DataError(f"{path}: corrupt or unknown audio: {error.strerror}") from error
    if not blocks:
        return np.zeros((0, channels), dtype=np.float32), rate_hz
    return np.concatenate(blocks, axis=1).T.astype(np.float32), rate_hz
