"""Read and write recordings: any container to float32, mono or stereo, at a wanted rate, whole or block by block.

soundfile reads what libsndfile knows (wav, flac, ogg, opus, mp3, ...), the `g722` package reads raw G.722, PyAV reads
the rest (m4a, aac, wma, webm, ...) where it is installed. Decoded audio is never written back to disk. A failure here
is always a `DataError` that begins with the path.
"""

import io
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

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

NO_SAMPLES = "zero duration: the file holds no samples"
NON_FINITE = "non-finite samples (NaN or infinity)"

_LARGEST_VALUES_PER_S = 8 * 384_000
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


@dataclass(frozen=True, slots=True)
class DecodedBlocks:
    """A recording that is being decoded."""

    sampling_rate_hz: int
    channels: int
    blocks: Iterator[FloatArray]
    """Consecutive parts of shape (samples, channels), none of them empty."""


@contextmanager
def open_blocks(path: Path | str, block_s: float = 10.0) -> Iterator[DecodedBlocks]:
    """Decode a recording part by part at its own rate, in memory that does not grow with its length.

    Args:
        path: Any recording.
        block_s: Length of a part, about: a container's own packets are not cut.

    Raises:
        DataError: Missing, empty, corrupt, or in a container that needs the `audio` extra; also while iterating.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if size == 0:
        raise DataError(f"{path}: empty file (0 bytes)")
    suffix = path.suffix.lower()
    if suffix == ".raw":
        raise DataError(f"{path}: samples without a header do not say their rate; convert the file to wav or flac")
    if suffix == ".g722":
        with open(path, "rb") as file:
            yield DecodedBlocks(_G722_RATE_HZ, 1, _g722_blocks(file, block_s))
    elif suffix in PYAV_SUFFIXES:
        with _open_pyav(path) as decoded:
            yield decoded
    else:
        with _open_soundfile(path, block_s) as decoded:
            yield decoded


def read_audio(path: Path | str) -> tuple[FloatArray, int]:
    """Decode a whole recording at its own rate.

    Returns:
        Samples, float32 of shape (samples, channels), nominally within -1..1; and the rate in Hz.

    Raises:
        DataError: As `open_blocks`; or no samples.
    """
    with open_blocks(path) as decoded:
        blocks = list(decoded.blocks)
    if not blocks:
        raise DataError(f"{path}: {NO_SAMPLES}")
    return np.concatenate(blocks) if len(blocks) > 1 else blocks[0], decoded.sampling_rate_hz


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
        if info.frames == 0:
            raise DataError(f"{path}: {NO_SAMPLES}")
        return AudioInfo(info.samplerate, info.channels, info.frames)
    with open_blocks(path) as decoded:
        num_samples = sum(block.shape[0] for block in decoded.blocks)
    if num_samples == 0:
        raise DataError(f"{path}: {NO_SAMPLES}")
    return AudioInfo(decoded.sampling_rate_hz, decoded.channels, num_samples)


def load_audio(
    path: Path | str, sampling_rate_hz: int, *, audio_channels: int = 1, max_channels: int | None = 2
) -> "Tensor":
    """Decode, bring to one or two channels, and resample (soxr, HQ).

    Args:
        path: Any recording `read_audio` reads.
        sampling_rate_hz: Wanted rate.
        audio_channels: 1 mixes the channels by their mean. 2 keeps two; a mono recording, and the mean of more than
            two, is heard on both.
        max_channels: More channels than this are an error, since the mean of unknown channels is not speech one can
            vouch for; None takes any number.

    Returns:
        float32 tensor of shape (samples,), or (2, samples) for two channels.

    Raises:
        DataError: As `read_audio`; too many channels; samples that are not finite; nothing left at the wanted rate.
    """
    parts = list(audio_blocks(path, sampling_rate_hz, audio_channels=audio_channels, max_channels=max_channels))
    if len(parts) == 1:
        return parts[0]
    import torch

    return torch.cat(parts, dim=-1)


def audio_blocks(
    path: Path | str,
    sampling_rate_hz: int,
    block_s: float = 10.0,
    *,
    audio_channels: int = 1,
    max_channels: int | None = 2,
) -> Iterator["Tensor"]:
    """The same samples as `load_audio`, part by part, in memory that does not grow with the recording.

    Args:
        path: Any recording `read_audio` reads.
        sampling_rate_hz: Wanted rate.
        block_s: Length of a part, about; none is empty.
        audio_channels: As in `load_audio`.
        max_channels: As in `load_audio`.

    Yields:
        float32 tensors of shape (samples,), or (2, samples) for two channels.

    Raises:
        DataError: As `load_audio`, when the part that is at fault is reached.
    """
    import torch

    if audio_channels not in (1, 2) or block_s <= 0:
        raise DataError(f"audio_channels={audio_channels}, block_s={block_s}: expected 1 or 2 channels, more than 0 s")
    total_in = total_out = 0
    with open_blocks(path, block_s) as decoded:
        channels, rate_hz = decoded.channels, decoded.sampling_rate_hz
        if max_channels is not None and channels > max_channels:
            raise DataError(
                f"{path}: {channels} channels, at most {max_channels} are mixed down; pass the one with speech"
            )
        kept = 2 if audio_channels == channels == 2 else 1
        resampler = _Resampler(rate_hz, sampling_rate_hz, kept)
        for block in itertools.chain(decoded.blocks, [None]):
            total_in += 0 if block is None else block.shape[0]
            out = resampler.finish() if block is None else resampler.push(mix_channels(block, kept))
            # Of the result: a sample that is not finite, or a mean or filter near the largest float, shows there.
            if not np.isfinite(out).all():
                raise DataError(f"{path}: {NON_FINITE}")
            if out.shape[0]:
                total_out += out.shape[0]
                wave = torch.from_numpy(np.ascontiguousarray(out.T))
                yield wave[0] if audio_channels == 1 else wave.expand(2, -1).contiguous()
    if total_in == 0:
        raise DataError(f"{path}: {NO_SAMPLES}")
    if total_out == 0:
        raise DataError(f"{path}: too short: {total_in} samples at {rate_hz} Hz are none at {sampling_rate_hz} Hz")


class _Resampler:
    """soxr's HQ filter over consecutive parts of shape (samples, channels); equal rates copy nothing."""

    def __init__(self, from_hz: int, to_hz: int, channels: int) -> None:
        self._none = np.zeros((0, channels), dtype=np.float32)
        self._stream: Any = None
        if from_hz != to_hz:
            import soxr

            self._stream = soxr.ResampleStream(from_hz, to_hz, channels, dtype="float32", quality="HQ")

    def push(self, block: FloatArray) -> FloatArray:
        return block if self._stream is None else self._stream.resample_chunk(np.ascontiguousarray(block))

    def finish(self) -> FloatArray:
        return self._none if self._stream is None else self._stream.resample_chunk(self._none, last=True)


def mix_channels(block: FloatArray, kept: int) -> FloatArray:
    """A part (samples, channels) with `kept` channels; more are mixed by their mean.

    NaN and infinity do not leave it finite, nor do samples near the largest float; no warning says so.
    """
    if block.shape[1] == kept:
        return block
    with np.errstate(over="ignore", invalid="ignore"):
        mixed: FloatArray = block.mean(axis=1, keepdims=True, dtype=np.float32)
    return mixed


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
        wave: Shape (samples,), or (2, samples), whose channels move together; silence stays as it is.
        target_dbfs: RMS level in dB relative to full scale.
        max_gain_db: Bound of the gain.

    Source: MOSS-TTS moss_tts_delay/processing_moss_tts.py:756 @58b20a0.
    """
    return wave * loudness_gain(float(wave.square().mean().sqrt()), target_dbfs, max_gain_db)


def loudness_gain(rms: float, target_dbfs: float = REFERENCE_DBFS, max_gain_db: float = MAX_GAIN_DB) -> float:
    """The factor of `normalise_loudness` for a clip of this root mean square; 1 for silence."""
    if rms == 0.0:
        return 1.0
    gain_db = max(-max_gain_db, min(max_gain_db, target_dbfs - 20 * math.log10(rms)))
    gain: float = 10 ** (gain_db / 20)
    return gain


def write_wav(path: Path | str, wave: "Tensor | FloatArray", sampling_rate_hz: int) -> None:
    """Write a wave, shape (samples,) or (2, samples), as 16-bit PCM, atomically; values beyond -1..1 are clipped.

    Raises:
        DataError: Another shape, not finite, or the disk is full.
    """
    import soundfile

    samples = wave if isinstance(wave, np.ndarray) else wave.detach().cpu().numpy()
    if samples.ndim != 1 and (samples.ndim != 2 or samples.shape[0] != 2):
        raise DataError(f"{path}: expected a wave of shape (samples,) or (2, samples), got {samples.shape}")
    if not np.isfinite(samples).all():
        raise DataError(f"{path}: {NON_FINITE}")
    buffer = io.BytesIO()
    clipped = np.clip(samples.astype(np.float32), -1.0, 1.0)
    soundfile.write(buffer, clipped.T, sampling_rate_hz, format="WAV", subtype="PCM_16")
    write_bytes(path, buffer.getvalue())


@contextmanager
def _open_soundfile(path: Path, block_s: float) -> Iterator[DecodedBlocks]:
    import soundfile

    class Forward(soundfile.SoundFile):  # type: ignore[misc]
        """Read from the front to the end only: python-soundfile seeks after every read of a file that it may seek in,
        and an MP3 decoder that was sought forgets what the next samples build upon.
        """

        def seekable(self) -> bool:
            return False

    try:
        with Forward(str(path)) as file:
            # soundfile takes the memory of a block before it reads: a header may say any rate and many channels.
            rate_hz = min(file.samplerate, _LARGEST_VALUES_PER_S // file.channels)
            blocks = _soundfile_blocks(file, max(1, round(block_s * rate_hz)))
            yield DecodedBlocks(file.samplerate, file.channels, blocks)
    except (soundfile.LibsndfileError, OSError) as error:
        reason = getattr(error, "error_string", None) or str(error)
        raise DataError(f"{path}: corrupt or unknown audio: {reason}") from error


def _soundfile_blocks(file: Any, block_samples: int) -> Iterator[FloatArray]:
    while True:
        block = file.read(block_samples, dtype="float32", always_2d=True)
        if not block.shape[0]:
            return
        yield block


def _g722_blocks(file: BinaryIO, block_s: float) -> Iterator[FloatArray]:
    from G722 import G722

    decoder = G722(_G722_RATE_HZ, _G722_BITS_PER_S)
    while encoded := file.read(max(1, round(block_s * _G722_BITS_PER_S / 8))):
        samples = np.frombuffer(decoder.decode(encoded), dtype=np.int16)
        yield (samples.astype(np.float32) / 32768.0)[:, None]


@contextmanager
def _open_pyav(path: Path) -> Iterator[DecodedBlocks]:
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
            if stream.codec_context is None:
                raise DataError(f"{path}: PyAV has no decoder for its sound; convert the file to wav or flac")
            if not stream.rate or not stream.channels:
                raise DataError(f"{path}: corrupt or unknown audio: {stream.rate} Hz, {stream.channels} channels")
            yield DecodedBlocks(stream.rate, stream.channels, _pyav_blocks(container, stream, path))
    except (av.FFmpegError, UnicodeError) as error:
        # Tags that are no UTF-8 end the opening of a file, too.
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: corrupt or unknown audio: {reason}") from error


def _pyav_blocks(container: Any, stream: Any, path: Path) -> Iterator[FloatArray]:
    import av

    resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
    first = ""
    for frame in itertools.chain(container.decode(stream), [None]):
        if frame is not None:
            found = f"{frame.sample_rate} Hz {frame.layout.name} {frame.format.name}"
            first = first or found
            if found != first:
                raise DataError(f"{path}: changes from {first} to {found} on the way; convert the file to wav or flac")
        for block in resampler.resample(frame):
            if block.samples:
                yield block.to_ndarray().T.astype(np.float32)
