"""Speech-like test signals that need no recording: a gliding voice with formants, syllables and pauses."""

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 16_000


def voice(seconds: float = 3.0, *, pitch_hz: float = 120.0, seed: int = 0) -> NDArray[np.float32]:
    """Harmonics under two moving formants, four syllables a second, peak 0.5; the same arguments, the same samples."""
    times = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    phase = 2 * np.pi * np.cumsum(pitch_hz * (1 + 0.2 * np.sin(2 * np.pi * 0.7 * times + seed))) / RATE_HZ
    first = 500 + 250 * np.sin(2 * np.pi * 1.3 * times + seed)
    second = 1500 + 600 * np.sin(2 * np.pi * 0.9 * times + 2 * seed)
    wave = np.zeros_like(times)
    for harmonic in range(1, 31):
        frequency = harmonic * pitch_hz
        gain = np.exp(-(((frequency - first) / 200) ** 2)) + 0.6 * np.exp(-(((frequency - second) / 300) ** 2)) + 0.02
        wave += gain * np.sin(harmonic * phase)
    syllables = np.clip(np.sin(2 * np.pi * 2 * times), 0, None) ** 0.5
    return (0.5 * wave * syllables / np.abs(wave * syllables).max()).astype(np.float32)


def with_noise(wave: NDArray[np.float32], snr_db: float, seed: int = 0) -> NDArray[np.float32]:
    """White noise at a signal-to-noise ratio over the whole clip."""
    noise = np.random.default_rng(seed).standard_normal(wave.size)
    scale = np.sqrt(np.mean(wave**2) / np.mean(noise**2) / 10 ** (snr_db / 10))
    return (wave + scale * noise).astype(np.float32)
