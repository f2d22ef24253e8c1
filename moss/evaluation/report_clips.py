"""Players and spectrograms as data inside the page.

Clips are FLAC (16 bit, lossless, half the size of WAV, played by every current browser), so that what is heard is what
was scored. Spectrograms are palette PNGs with a logarithmic level axis of 80 dB.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moss.data.audio import read_audio
from moss.errors import MossError

_IMAGE_WIDTH, _IMAGE_HEIGHT = 320, 96
_WINDOW_S = 0.025
_TOP_HZ = 8000
_RANGE_DB = 80.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A recording to show under a name."""

    label: str
    path: Path


def render_clips(clips: Sequence[Clip]) -> str:
    """Players with spectrograms side by side; a clip that cannot be read says why instead."""
    return f'<div class="clips">{"".join(_clip(clip) for clip in clips)}</div>'


def _clip(clip: Clip) -> str:
    label = escape(clip.label, quote=True)
    try:
        samples, rate_hz = read_audio(clip.path)
    except MossError as error:
        return f'<div class="clip"><h4>{label}</h4><p class="failure">{escape(str(error))}</p></div>'
    wave = np.nan_to_num(samples.mean(axis=1))
    seconds = wave.size / rate_hz
    top_khz = min(_TOP_HZ, rate_hz / 2) / 1000
    return (
        f'<figure class="clip"><h4>{label}</h4>'
        f'<img alt="Spectrogram of {label}, {seconds:.2f} s, 0 to {top_khz:g} kHz" width="{_IMAGE_WIDTH}" '
        f'height="{_IMAGE_HEIGHT}" src="{spectrogram_uri(wave, rate_hz)}">'
        f'<audio controls preload="metadata" aria-label="{label}" src="{audio_uri(wave, rate_hz)}"></audio>'
        f"<figcaption class=muted>{seconds:.2f} s · 0–{top_khz:g} kHz</figcaption></figure>"
    )


def audio_uri(wave: NDArray[np.floating], sampling_rate_hz: int) -> str:
    """A mono wave (N,) as a FLAC data URI."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wave, -1.0, 1.0), sampling_rate_hz, format="FLAC", subtype="PCM_16")
    return _data_uri("audio/flac", buffer.getvalue())


def spectrogram_uri(wave: NDArray[np.floating], sampling_rate_hz: int) -> str:
    """A mono wave (N,) as a PNG data URI: time to the right, frequency upwards, the loudest point brightest."""
    from matplotlib import colormaps
    from PIL import Image

    levels = spectrogram(wave, sampling_rate_hz, columns=_IMAGE_WIDTH)
    image = Image.fromarray(np.round(levels[::-1] * 255).astype(np.uint8))
    image = image.resize((_IMAGE_WIDTH, _IMAGE_HEIGHT), Image.Resampling.BILINEAR)
    # 64 shades are enough for the eye and halve the file.
    indexed = Image.fromarray(np.asarray(image) // 4)
    indexed = Image.frombytes("P", indexed.size, indexed.tobytes())
    shades = colormaps["magma"](np.linspace(0, 1, 64))[:, :3]
    indexed.putpalette(np.round(shades * 255).astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    indexed.save(buffer, format="PNG", optimize=True)
    return _data_uri("image/png", buffer.getvalue())


def spectrogram(wave: NDArray[np.floating], sampling_rate_hz: int, *, columns: int) -> NDArray[np.float64]:
    """Levels (bins, columns) from 0 (80 dB under the loudest point, or silence) to 1, low frequencies first."""
    window = max(16, round(_WINDOW_S * sampling_rate_hz))
    padded = np.pad(wave.astype(np.float64), window // 2)
    starts = np.linspace(0, padded.size - window, columns).astype(int)
    frames = padded[starts[:, None] + np.arange(window)] * np.hanning(window)
    power = np.square(np.abs(np.fft.rfft(frames, axis=1))).T
    power = power[np.fft.rfftfreq(window, 1 / sampling_rate_hz) <= _TOP_HZ]
    loudest = power.max()
    if loudest == 0:
        return np.zeros(power.shape)
    decibels = 10 * np.log10(np.maximum(power / loudest, 10 ** (-_RANGE_DB / 10)))
    levels: NDArray[np.float64] = 1 + decibels / _RANGE_DB
    return levels


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
