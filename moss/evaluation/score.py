"""Items to records: runs every metric of every clip, keeps each record at once, and turns failures into records.

Clips are scored in as many threads as the recogniser has workers (where there is none, as there are cores), each clip
on its own, so that scores do not depend on how many there are. Only a `MossError` becomes a failed record; anything
else is a bug and ends the run, with the records made so far kept.
"""

import dataclasses
import logging
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moss.config.evaluation import AsrConfig, Metric
from moss.data.files import sha256_file
from moss.data.progress import track
from moss.errors import EvaluationError, MossError
from moss.evaluation.backends.asr import available_cores
from moss.evaluation.backends.interface import Recogniser, SpeakerEncoder, Wave16k
from moss.evaluation.items import Item, duration_s, read_wave
from moss.evaluation.metrics.signal import (
    PESQ_PIECE_S,
    STOI_WHOLE_S,
    duration_error,
    pesq_nb_8k,
    pesq_nb_16k,
    pesq_wb,
    stoi,
)
from moss.evaluation.metrics.similarity import cosine
from moss.evaluation.metrics.spectral import mel_distance, stft_distance
from moss.evaluation.metrics.wer import num_tokens, word_errors
from moss.evaluation.protocol import PROTOCOL
from moss.evaluation.records import INVALID_REFERENCE, Journal, Record, record_key, word_error_fields

logger = logging.getLogger(__name__)

_SIGNAL_METRICS: dict[Metric, Callable[[Wave16k, Wave16k], float]] = {
    Metric.PESQ_NB_16K: pesq_nb_16k,
    Metric.PESQ_NB_8K: pesq_nb_8k,
    Metric.PESQ_WB: pesq_wb,
    Metric.STOI: lambda target, wave: stoi(target, wave),
    Metric.ESTOI: lambda target, wave: stoi(target, wave, extended=True),
    Metric.MEL_DISTANCE: mel_distance,
    Metric.STFT_DISTANCE: stft_distance,
}

_PACKAGES = {
    Metric.PESQ_NB_16K: "pesq",
    Metric.PESQ_NB_8K: "pesq",
    Metric.PESQ_WB: "pesq",
    Metric.STOI: "pystoi",
    Metric.ESTOI: "pystoi",
    Metric.MEL_DISTANCE: "librosa",
    Metric.STFT_DISTANCE: "numpy",
}
_WHOLE_S = {"pesq": PESQ_PIECE_S, "pystoi": STOI_WHOLE_S}
_OWN_METHODS = {Metric.DURATION_ERROR: "clip length", Metric.RTF: "wall clock"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Backends:
    """The models a run scores with; tests put small deterministic ones in their place."""

    recogniser: Recogniser | None = None
    """Where WER is measured."""
    speaker: SpeakerEncoder | None = None
    """Where SIM is measured."""


def embedded_backends(asr: AsrConfig, metrics: Collection[Metric]) -> Backends:
    """The backends whose weights come inside pip packages, as far as the metrics need them.

    Raises:
        EvaluationError: a package is missing, or its weights are not the pinned ones.
    """
    from moss.evaluation.backends.asr import WhisperTinyEn
    from moss.evaluation.backends.speaker import GE2E

    return Backends(
        recogniser=WhisperTinyEn(beam_size=asr.beam_size, workers=asr.workers) if Metric.WER in metrics else None,
        speaker=GE2E() if Metric.SIM in metrics else None,
    )


def score_items(
    items: Sequence[Item], backends: Backends, journal: Journal, *, protocol: str = PROTOCOL
) -> list[Record]:
    """Score every metric of every item; the result has them in the order of `items`.

    Args:
        items: The clips.
        backends: The models.
        journal: Records of earlier runs, which are taken over where their inputs are unchanged.
        protocol: Name of the rules that the items were made by.

    Raises:
        EvaluationError: two items of one name, or a language that the recogniser does not understand.
        DataError: the disk is full; records already kept stay.
    """
    _check_unique(items)
    if backends.recogniser is not None:
        _check_languages(items, backends.recogniser)
        workers = backends.recogniser.workers
    else:
        workers = available_cores()
    scorer = _Scorer(backends, journal, protocol)
    done: dict[tuple[str, str], list[Record]] = {}
    pool = ThreadPoolExecutor(max_workers=max(1, workers), thread_name_prefix="score")
    try:
        futures: dict[Future[list[Record]], Item] = {pool.submit(scorer.score, item): item for item in items}
        for future in track(as_completed(futures), "scoring", len(futures)):
            item = futures[future]
            done[item.system, item.utterance] = future.result()
    finally:
        # Ctrl-C or a bug: what has not begun is dropped, what runs ends and is kept.
        pool.shutdown(wait=True, cancel_futures=True)
    return [record for item in items for record in done[item.system, item.utterance]]


class _Scorer:
    def __init__(self, backends: Backends, journal: Journal, protocol: str) -> None:
        self._backends = backends
        self._journal = journal
        self._protocol = protocol
        self._writing = threading.Lock()
        self._embedding = threading.Lock()
        self._embeddings: dict[str, NDArray[np.float32]] = {}

    def score(self, item: Item) -> list[Record]:
        clip = _Clip(item)
        records = []
        for metric in item.metrics:
            record = self._reused(item, clip, metric) or self._scored(item, clip, metric)
            records.append(record)
        return records

    def _reused(self, item: Item, clip: "_Clip", metric: Metric) -> Record | None:
        try:
            key = self._key(item, clip, metric)
        except MossError:
            return None
        known = self._journal.find((item.system, item.utterance, metric), key)
        return None if known is None else dataclasses.replace(known, group=item.group)

    def _scored(self, item: Item, clip: "_Clip", metric: Metric) -> Record:
        value: float | None = None
        error: str | None = None
        key, extra = "", dict[str, Any]()
        try:
            # Before the clip is touched: a text that cannot be scored is not the system's failure.
            if metric is Metric.WER and num_tokens(item.text, item.language) == 0:
                raise EvaluationError(f"{INVALID_REFERENCE}: text {item.text!r} is empty after normalisation")
            key = self._key(item, clip, metric)
            value, extra = self._value(item, clip, metric)
        except MossError as failure:
            error = str(failure)
        record = Record(
            system=item.system,
            group=item.group,
            utterance=item.utterance,
            metric=metric,
            value=value,
            error=error,
            backend=self._revision(metric),
            protocol=self._protocol,
            key=key,
            extra=extra if extra else _failed_extra(item, metric),
        )
        with self._writing:
            self._journal.append(record)
        return record

    def _value(self, item: Item, clip: "_Clip", metric: Metric) -> tuple[float, dict[str, Any]]:
        if metric is Metric.WER:
            assert self._backends.recogniser is not None
            hypothesis = self._backends.recogniser.transcribe(clip.wave, item.language)
            errors = word_errors(item.text, hypothesis, item.language)
            return errors.wer, word_error_fields(item.text, hypothesis, errors)
        if metric is Metric.SIM:
            assert item.prompt is not None
            return cosine(self._embed(clip.path), self._embed(item.prompt)), {"prompt_kind": item.prompt_kind}
        if metric is Metric.DURATION_ERROR:
            assert item.target_s is not None
            length_s = duration_s(clip.path)
            return duration_error(length_s, item.target_s), {"duration_s": length_s, "target_s": item.target_s}
        if metric is Metric.RTF:
            assert item.processing_s is not None
            audio_s = duration_s(clip.target)
            return item.processing_s / audio_s, {
                "processing_s": item.processing_s,
                "audio_s": audio_s,
                "timed_on": item.timed_on,
            }
        return _SIGNAL_METRICS[metric](clip.target_wave, clip.wave), {}

    def _key(self, item: Item, clip: "_Clip", metric: Metric) -> str:
        inputs: dict[str, str | float | None] = {
            "metric": metric.value,
            "protocol": self._protocol,
            "backend": self._revision(metric),
            "wav": clip.sha256,
        }
        if metric is Metric.WER:
            inputs |= {"text": item.text, "language": item.language}
        elif metric is Metric.SIM:
            assert item.prompt is not None
            inputs |= {"prompt": _sha256(item.prompt), "prompt_kind": item.prompt_kind}
        elif metric is Metric.DURATION_ERROR:
            inputs["target_s"] = item.target_s
        elif metric is Metric.RTF:
            inputs |= {"target": clip.target_sha256, "processing_s": item.processing_s, "timed_on": item.timed_on}
        else:
            inputs["target"] = clip.target_sha256
        return record_key(inputs)

    def _revision(self, metric: Metric) -> str:
        if metric is Metric.WER:
            assert self._backends.recogniser is not None
            return str(self._backends.recogniser.revision)
        if metric is Metric.SIM:
            assert self._backends.speaker is not None
            return str(self._backends.speaker.revision)
        return signal_revision(metric)

    def _embed(self, path: Path) -> NDArray[np.float32]:
        """Embedding of a clip, computed once for every clip of the run whatever it is compared with."""
        digest = _sha256(path)
        wave = None if digest in self._embeddings else read_wave(path)
        with self._embedding:
            if digest not in self._embeddings:
                assert wave is not None
                assert self._backends.speaker is not None
                self._embeddings[digest] = self._backends.speaker.embed(wave)
            return self._embeddings[digest]


class _Clip:
    """The audio of an item, read at most once and only when a metric is not on disk already."""

    def __init__(self, item: Item) -> None:
        self._item = item

    @cached_property
    def path(self) -> Path:
        if self._item.wav is None:
            raise EvaluationError(self._item.failure or "no clip was made")
        return self._item.wav

    @cached_property
    def sha256(self) -> str:
        return _sha256(self.path)

    @cached_property
    def wave(self) -> Wave16k:
        return read_wave(self.path)

    @cached_property
    def target(self) -> Path:
        assert self._item.target is not None
        return self._item.target

    @cached_property
    def target_sha256(self) -> str:
        return _sha256(self.target)

    @cached_property
    def target_wave(self) -> Wave16k:
        return read_wave(self.target)


def signal_revision(metric: Metric) -> str:
    """Packages behind a metric that has no model."""
    from importlib.metadata import version

    if metric in _OWN_METHODS:
        return _OWN_METHODS[metric]
    package = _PACKAGES[metric]
    pieces = f", above {_WHOLE_S[package]} s in pieces" if package in _WHOLE_S else ""
    return f"{package} {version(package)}{pieces}"


def _failed_extra(item: Item, metric: Metric) -> dict[str, Any]:
    """A failed WER record still says what should have been heard, and how many tokens that is."""
    if metric is not Metric.WER:
        return {}
    return {"text": item.text, "num_tokens": num_tokens(item.text, item.language)}


def _sha256(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}; was it moved, or never made?") from error


def _check_unique(items: Sequence[Item]) -> None:
    seen: set[tuple[str, str]] = set()
    for item in items:
        name = (item.system, item.utterance)
        if name in seen:
            raise EvaluationError(f"utterance {item.utterance!r} of {item.system!r} is listed twice; give it one line")
        seen.add(name)


def _check_languages(items: Sequence[Item], recogniser: Recogniser) -> None:
    """Refuse before anything is scored: a wrong language would look like a bad voice."""
    known = recogniser.languages
    if known is None:
        return
    foreign = [item for item in items if Metric.WER in item.metrics and item.language not in known]
    if foreign:
        first = foreign[0]
        raise EvaluationError(
            f"{recogniser.revision.name} understands {', '.join(sorted(known))} only; {len(foreign)} of {len(items)}"
            f" clips are in another language, the first {first.utterance!r} ({first.language!r}); "
            "score them without WER by metrics=[...], or leave them out"
        )
