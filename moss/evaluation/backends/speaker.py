"""GE2E speaker embeddings with the weights inside the Resemblyzer package.

The network is small enough to be written out here, which avoids the package's import chain and lets the checkpoint be
read with `weights_only=True` and strictly. Its voice activity detector is left out on purpose: without it the equal
error rate is not worse and embedding is about thirty times faster. This is not the WavLM similarity of Seed-TTS-eval.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moss.errors import EvaluationError
from moss.evaluation.backends.interface import Revision, Wave16k, packaged_file

if TYPE_CHECKING:
    import torch

GE2E_SHA256 = "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e"
GE2E_INSTALL = "pip install --no-deps resemblyzer==0.1.4"

_RATE_HZ = 16_000
_HOP = 160
_WINDOW = 400
_MELS = 40
_PARTIAL_FRAMES = 160
_PARTIALS_PER_S = 1.3
_MIN_COVERAGE_FRAC = 0.75
_VOLUME_DBFS = -30.0
_TRAINING_ONLY_KEYS = {"similarity_weight", "similarity_bias"}


class GE2E:
    """Three-layer LSTM over mel frames; a clip's embedding is the mean over windows of 1.6 s.

    Raises:
        EvaluationError: the package is missing, or its weights are not the pinned ones.

    Source: Resemblyzer 0.1.4 voice_encoder.py (embed_utterance with its defaults), audio.py (normalize_volume).
    """

    metric_label = "SIM (GE2E)"

    def __init__(self) -> None:
        self._weights = packaged_file("resemblyzer", "pretrained.pt", sha256=GE2E_SHA256, install=GE2E_INSTALL)
        self._loaded: torch.nn.ModuleDict | None = None
        self.revision = Revision(
            name="ge2e",
            version="resemblyzer 0.1.4",
            settings="16 kHz, volume raised to -30 dBFS, no VAD, windows of 1.6 s at 1.3 per s",
            sha256=GE2E_SHA256,
        )

    @property
    def _network(self) -> "torch.nn.ModuleDict":
        """The network, loaded at the first clip."""
        import torch

        if self._loaded is None:
            state: dict[str, torch.Tensor] = torch.load(self._weights, map_location="cpu", weights_only=True)[
                "model_state"
            ]
            network = torch.nn.ModuleDict(
                {"lstm": torch.nn.LSTM(_MELS, 256, 3, batch_first=True), "linear": torch.nn.Linear(256, 256)}
            )
            network.load_state_dict({key: value for key, value in state.items() if key not in _TRAINING_ONLY_KEYS})
            self._loaded = network.eval()
        return self._loaded

    def embed(self, wave: Wave16k) -> NDArray[np.float32]:
        """Unit-length embedding (256,) of one clip.

        Args:
            wave: Samples (N,) at 16 kHz.

        Raises:
            EvaluationError: the clip is empty, silent or not finite.
        """
        import torch

        if wave.size == 0 or not np.isfinite(wave).all() or not wave.any():
            raise EvaluationError("a clip that is empty, silent or not finite has no speaker embedding")
        starts = _partial_starts(wave.size)
        wave = _raise_volume(wave)
        wave = np.pad(wave, (0, max(0, (starts[-1] + _PARTIAL_FRAMES) * _HOP - wave.size)))
        mel = _mel_frames(wave)
        partials = torch.from_numpy(np.stack([mel[start : start + _PARTIAL_FRAMES] for start in starts]))
        with torch.inference_mode(), _one_thread():
            _, (hidden, _) = self._network["lstm"](partials)
            raw = torch.relu(self._network["linear"](hidden[-1]))
            unit = raw / raw.norm(dim=1, keepdim=True)
            mean = unit.mean(dim=0)
            embedding: NDArray[np.float32] = (mean / mean.norm()).numpy()
        return embedding


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch on one thread: steps this small gain nothing from more, and lose twentyfold to their spinning."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _partial_starts(num_samples: int) -> list[int]:
    """First mel frame of every window; the last window is dropped when less than three quarters of it is audio."""
    num_frames = -(-(num_samples + 1) // _HOP)
    frame_step = round(_RATE_HZ / _PARTIALS_PER_S / _HOP)
    starts = list(range(0, max(1, num_frames - _PARTIAL_FRAMES + frame_step + 1), frame_step))
    covered_frac = (num_samples - starts[-1] * _HOP) / (_PARTIAL_FRAMES * _HOP)
    if covered_frac < _MIN_COVERAGE_FRAC and len(starts) > 1:
        starts.pop()
    return starts


def _raise_volume(wave: Wave16k) -> Wave16k:
    """Bring a quiet clip up to -30 dBFS; leave a louder one alone."""
    level_dbfs = 20 * np.log10(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))
    return wave * np.float32(10 ** (max(0.0, _VOLUME_DBFS - level_dbfs) / 20))


def _mel_frames(wave: Wave16k) -> NDArray[np.float32]:
    """Mel power spectrogram (frames, 40), not logarithmic: Hann window, frames centred, zeros outside the clip."""
    padded = np.pad(wave, _WINDOW // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)).astype(np.float32)
    power = np.square(np.abs(np.fft.rfft(windows * hann, axis=1)))
    return (power @ _mel_filters().T).astype(np.float32)


@cache
def _mel_filters() -> NDArray[np.float64]:
    """Triangular filters (40, bins) of equal area on the Slaney mel scale: linear below 1 kHz, logarithmic above."""
    hz_per_mel, break_hz, log_step = 200.0 / 3, 1000.0, np.log(6.4) / 27
    break_mel = break_hz / hz_per_mel
    top_mel = break_mel + np.log(_RATE_HZ / 2 / break_hz) / log_step
    mels = np.linspace(0.0, top_mel, _MELS + 2)
    log_hz = break_hz * np.exp(log_step * (mels - break_mel))
    edges_hz = np.where(mels < break_mel, mels * hz_per_mel, log_hz)
    bins_hz = np.fft.rfftfreq(_WINDOW, 1 / _RATE_HZ)
    low, centre, high = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    triangles = np.minimum((bins_hz - low) / (centre - low), (high - bins_hz) / (high - centre))
    filters: NDArray[np.float64] = np.maximum(triangles, 0.0) * (2.0 / (high - low))
    return filters
