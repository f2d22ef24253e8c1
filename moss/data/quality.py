"""Measure the recordings of a manifest and keep the good ones.

Results lie in `quality.jsonl` beside the manifest, one line per recording and measure, keyed by the hash of the audio:
a run that is stopped goes on where it stopped, and a second one measures nothing. What is here: running the measures
over a manifest, and choosing. Not here: the measures (`quality_measures.py`).
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from moss.data.audio import load_audio
from moss.data.files import append_jsonl, read_journal
from moss.data.manifest import Utterance
from moss.data.progress import track
from moss.data.quality_measures import DNSMOS, MEASURES, RATE_HZ, RECOGNISED_LANGUAGES, TRANSCRIPT, Measure
from moss.data.quarantine import Quarantine
from moss.data.split import REFERENCE, normalised_text
from moss.data.workers import map_batches
from moss.errors import DataError

FILE_NAME = "quality.jsonl"
QUARANTINE = "quality_quarantine_{measure}.jsonl"

_BATCH_SIZE = 8

Measured = Mapping[tuple[str, str], Mapping[str, Any]]
"""(sha256 of the audio, measure) to the fields of its result."""


@dataclass(frozen=True, slots=True)
class MeasureResult:
    """What was done: new results, results that were there, and bad recordings."""

    measured: int
    kept: int
    quarantined: int


@dataclass(slots=True)
class Selection:
    """What became of the utterances of a manifest."""

    kept: list[Utterance] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        """How many were kept, and how many were not for which reason."""
        hours = sum(utterance.duration_s for utterance in self.kept) / 3600
        lines = [f"kept: {len(self.kept)}, {hours:.3f} h   dropped: {self.dropped.total()}"]
        return lines + [f"  {reason}: {count}" for reason, count in self.dropped.most_common()]


@dataclass(frozen=True, slots=True)
class _Job:
    id: str
    audio: str
    sha256: str


def measure_utterances(
    utterances: Sequence[Utterance],
    journal: Path,
    measure: str,
    *,
    workers: int = 1,
    max_bad_frac: float = 0.05,
    make_measure: Callable[[], Measure] | None = None,
) -> MeasureResult:
    """Measure what the journal does not hold yet; recordings that fail are listed in `QUARANTINE` beside it.

    Args:
        utterances: Of a manifest; those without a recording are left out, and for transcripts those in a language that
            the recogniser does not know. A recording is measured once, however many utterances share it.
        journal: `quality.jsonl`; made if missing.
        measure: "dnsmos" or "transcript".
        workers: Processes, each with its own model and one thread.
        max_bad_frac: Stop above this fraction of recordings that fail.
        make_measure: Makes the measure, in place of the embedded one of that name; picklable where there are several
            workers.

    Raises:
        DataError: An unknown measure, recordings without sha256, a package that is not installed, too many bad
            recordings, a full disk.
    """
    if measure not in MEASURES or workers < 1:
        raise DataError(f"measure {measure!r} with {workers} workers: expected {' or '.join(MEASURES)}, and at least 1")
    unnamed = sum(bool(u.audio) and not u.sha256 for u in utterances)
    if unnamed:
        raise DataError(
            f"{unnamed} of {len(utterances)} utterances have no sha256, by which measures are kept; make the manifest "
            "with data_prep/01_manifest.py"
        )
    wanted = {
        u.sha256: _Job(u.id, u.audio, u.sha256)
        for u in utterances
        if u.audio and (measure != TRANSCRIPT or u.language in RECOGNISED_LANGUAGES)
    }
    done = {sha256 for sha256, name in read_quality(journal) if name == measure}
    jobs = [job for sha256, job in wanted.items() if sha256 not in done]
    batches = [jobs[start : start + _BATCH_SIZE] for start in range(0, len(jobs), _BATCH_SIZE)]
    quarantine = Quarantine(journal.with_name(QUARANTINE.format(measure=measure)), measure)
    measured = 0
    work = partial(_make_work, make_measure or MEASURES[measure])
    for batch in track(map_batches(batches, work, workers, "measuring"), f"measuring {measure}", len(batches)):
        for job, found, problem in batch:
            if problem:
                quarantine.add(job.id, job.audio, problem)
            else:
                append_jsonl(journal, {"sha256": job.sha256, "measure": measure} | found, durable=False)
                measured += 1
    quarantine.close(len(wanted), max_bad_frac)
    return MeasureResult(measured, len(wanted) - len(jobs), len(quarantine.rejected))


def read_quality(journal: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """All results by (sha256, measure); empty where there is no journal."""
    return {
        (row["sha256"], row["measure"]): {k: v for k, v in row.items() if k not in ("sha256", "measure")}
        for row in read_journal(journal)
        if "sha256" in row and "measure" in row
    }


def word_error_rate(text: str, heard: str) -> float:
    """Word errors per word of the text, after lower-casing and without punctuation; above 1 for long mishearings.

    Raises:
        DataError: jiwer is not installed.
    """
    try:
        import jiwer
    except ImportError as error:
        raise DataError("jiwer is not installed; run: pip install 'moss[eval]'") from error
    rate: float = jiwer.wer(normalised_text(text), normalised_text(heard))
    return round(rate, 4)


def select_utterances(
    utterances: Sequence[Utterance],
    measured: Measured,
    *,
    min_dnsmos: float | None = None,
    max_wer: float | None = None,
) -> Selection:
    """Keep the utterances that reach the limits, with their figures in `extra` (`dnsmos_ovrl`, `asr_wer`).

    An utterance that a limit applies to and that was not measured is dropped and counted as such. The word error rate
    applies to texts in languages that the recogniser knows, other rows have no figure. Clips of split "reference" are
    kept: others name them. A conversation is kept whole or not at all.

    Args:
        utterances: Of a manifest.
        measured: As `read_quality` returns it.
        min_dnsmos: Smallest overall DNSMOS, 1 to 5.
        max_wer: Largest word error rate of the recogniser against the text.

    Raises:
        DataError: No limit, nothing is left, or jiwer is not installed.
    """
    if min_dnsmos is None and max_wer is None:
        raise DataError("nothing to select by: give --min-dnsmos, --max-wer or both")
    selection = Selection()
    judged = []
    for utterance in utterances:
        noted, reason = _judge(utterance, measured, min_dnsmos, max_wer)
        judged.append((noted, reason))
    broken = {u.extra["conversation"] for u, reason in judged if reason and "conversation" in u.extra}
    for noted, reason in judged:
        if not reason and noted.extra.get("conversation") in broken:
            reason = "another turn of the conversation was dropped"
        if reason:
            selection.dropped[reason] += 1
        else:
            selection.kept.append(noted)
    if all(utterance.split == REFERENCE for utterance in selection.kept):
        raise DataError(f"none of {len(utterances)} utterances is left; " + "; ".join(selection.lines()))
    return selection


def _judge(
    utterance: Utterance, measured: Measured, min_dnsmos: float | None, max_wer: float | None
) -> tuple[Utterance, str]:
    """The utterance with its figures, and why it is dropped, or empty."""
    reasons = []
    notes: dict[str, float] = {}
    scores = measured.get((utterance.sha256, DNSMOS))
    if scores is not None:
        notes["dnsmos_ovrl"] = scores["ovrl"]
    heard = measured.get((utterance.sha256, TRANSCRIPT))
    is_known = utterance.language in RECOGNISED_LANGUAGES and bool(normalised_text(utterance.text))
    if heard is not None and is_known:
        notes["asr_wer"] = word_error_rate(utterance.text, heard["text"])
    if min_dnsmos is not None:
        if "dnsmos_ovrl" not in notes:
            reasons.append("no DNSMOS measured")
        elif notes["dnsmos_ovrl"] < min_dnsmos:
            reasons.append(f"DNSMOS below {min_dnsmos:g}")
    if max_wer is not None and is_known:
        if "asr_wer" not in notes:
            reasons.append("no transcript measured")
        elif notes["asr_wer"] > max_wer:
            reasons.append(f"word error rate above {max_wer:g}")
    noted = dataclasses.replace(utterance, extra=utterance.extra | notes)
    is_judged = bool(utterance.audio) and utterance.split != REFERENCE
    return noted, reasons[0] if reasons and is_judged else ""


def _make_work(
    make_measure: Callable[[], Measure],
) -> "Callable[[Sequence[_Job]], list[tuple[_Job, dict[str, Any], str]]]":
    return partial(_measure_batch, make_measure())


def _measure_batch(measure: Measure, batch: Sequence[_Job]) -> list[tuple[_Job, dict[str, Any], str]]:
    return list(_measured(measure, batch))


def _measured(measure: Measure, batch: Sequence[_Job]) -> Iterator[tuple[_Job, dict[str, Any], str]]:
    for job in batch:
        try:
            wave = load_audio(job.audio, RATE_HZ, max_channels=None).numpy()
            yield job, measure(wave), ""
        except (DataError, RuntimeError, ValueError) as error:
            # What a model throws at one odd clip must not end a job of hours.
            yield job, {}, f"{type(error).__name__}: {error}" if not isinstance(error, DataError) else str(error)
