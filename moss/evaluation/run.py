"""From a configuration to scores.parquet, summary.json, report.html and a table on the terminal.

Whatever happens, what was scored is on disk before an error ends the run: a second start continues.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from moss.config.evaluation import (
    GENERATION_METRICS,
    TOKENIZER_METRICS,
    BenchmarkName,
    EvalConfig,
    Metric,
    MissingPolicy,
)
from moss.config.schema import to_plain
from moss.data.files import remove_leftovers
from moss.errors import EvaluationError
from moss.evaluation.clips import choose_clips
from moss.evaluation.protocol import METRICS
from moss.evaluation.provenance import provenance
from moss.evaluation.records import Journal, Record
from moss.evaluation.report import Report, write_report
from moss.evaluation.score import Backends, embedded_backends, score_items
from moss.evaluation.summary import Summary, show_value, write_summary
from moss.evaluation.systems import System, build_systems
from moss.evaluation.table import print_summary
from moss.evaluation.tasks.generations import GenerationsTask
from moss.evaluation.tasks.interface import Task
from moss.evaluation.tasks.tokenizer import TokenizerTask

logger = logging.getLogger(__name__)

_SHOWN_FAILURES = 5


def main(config: EvalConfig) -> None:
    """Entry point of evaluate.py: score, print the table, and fail if the scores cannot be right.

    Raises:
        MossError: as `evaluate` and `check_complete`.
    """
    summary = evaluate(config)
    print_summary(summary)
    check_complete(summary, config)


def evaluate(
    config: EvalConfig, *, backends: Backends | None = None, systems: Sequence[System] | None = None
) -> Summary:
    """Run a benchmark and write all its files; a failed clip is counted, not raised.

    Args:
        config: The run.
        backends: The models; None for the embedded ones.
        systems: What benchmark=tokenizer scores; None builds it from the configuration.

    Raises:
        ConfigError: the configuration lacks what the benchmark needs, or names a tokenizer that does not exist.
        CheckpointError: weights of a tokenizer that do not fit.
        DataError: a file that cannot be read or written.
        EvaluationError: nothing to score, a language nobody understands, or a backend that is missing.
    """
    backends = backends or embedded_backends(config.asr, _metrics(config))
    task = _task(config, backends, systems)
    _make_folder(config.output)
    journal = Journal(config.output)
    records = score_items(task.items, backends, journal, protocol=task.protocol)
    journal.finish(records)
    summary = _summary(task, records, config, backends)
    write_summary(config.output / "summary.json", summary)
    page = Report(
        summary=summary,
        records=records,
        items=task.items,
        charts=task.charts(summary.rows, summary.labels),
        ranked_system=task.ranked_system,
        shown_systems=task.shown_systems,
        audio_utterances=config.report.audio_utterances,
    )
    write_report(config.output / "report.html", page)
    task.write_files(config.output, summary)
    logger.info("%d scores in %s; open %s", len(records), journal.parquet, config.output / "report.html")
    return summary


def evaluate_generations(
    generations: Path,
    output: Path,
    *,
    training_run: Path | None = None,
    reconstruction: Path | None = None,
    missing: MissingPolicy = MissingPolicy.COUNT_AS_ERROR,
    backends: Backends | None = None,
) -> Summary:
    """Score a folder of generations with default settings; for anything else use `evaluate`.

    Args:
        generations: Folder with generations.jsonl.
        output: Folder for the results; a second run continues in it.
        training_run: Folder with metrics.csv, for the loss curves of the report.
        reconstruction: Folder of `<request_id>.wav`, for rows without a `reconstruction` of their own.
        missing: What a missing or failed clip does.
        backends: The models; None for the embedded ones.

    Raises:
        MossError: as `evaluate` and `check_complete`.
    """
    config = EvalConfig(
        output=output,
        generations=generations,
        training_run=training_run,
        reconstruction=reconstruction,
        missing=missing,
    )
    summary = evaluate(config, backends=backends)
    check_complete(summary, config)
    return summary


def check_complete(summary: Summary, config: EvalConfig) -> None:
    """Refuse a result that cannot be right under the policies of the run. Its files stay.

    Raises:
        EvaluationError: clips failed under missing=fail; texts without words and no `allow_invalid`.
    """
    where = config.output / "scores.parquet"
    if config.missing is MissingPolicy.FAIL and summary.num_failed:
        raise EvaluationError(
            f"{summary.num_failed} scores are missing and missing=fail; {where} says why each of them is. "
            "Repair these clips and start again (what is scored is kept), or set missing=count_as_error"
        )
    if summary.num_invalid and not config.allow_invalid:
        raise EvaluationError(
            f"{summary.num_invalid} WER scores are excluded because their text is empty after normalisation "
            f"({where}, status invalid_ref); give them texts, leave them out, or set allow_invalid=true"
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(
            f"{folder} cannot be the output folder: {error.strerror}; choose another output=..."
        ) from error
    remove_leftovers(folder)


def _task(config: EvalConfig, backends: Backends, systems: Sequence[System] | None) -> Task:
    if config.benchmark is BenchmarkName.GENERATIONS:
        return GenerationsTask(config)
    notes: list[str] = []
    if systems is None:
        systems, notes = build_systems(config)
    choice = choose_clips(config)
    # Only when nothing is wrong with the input is anything written.
    _make_folder(config.output)
    languages = None if backends.recogniser is None else backends.recogniser.languages
    return TokenizerTask(config, choice, systems, languages=languages, notes=notes)


def _metrics(config: EvalConfig) -> tuple[Metric, ...]:
    is_generations = config.benchmark is BenchmarkName.GENERATIONS
    return tuple(config.metrics) or (GENERATION_METRICS if is_generations else TOKENIZER_METRICS)


def _summary(task: Task, records: Sequence[Record], config: EvalConfig, backends: Backends) -> Summary:
    labels = {metric: METRICS[metric].label for metric in task.metrics}
    if backends.speaker is not None and Metric.SIM in labels:
        labels[Metric.SIM] = backends.speaker.metric_label
    return Summary(
        benchmark=task.name,
        protocol=task.protocol,
        missing=config.missing,
        rows=task.rows(records, config.bootstrap),
        group_rows=task.group_rows(records, config.bootstrap),
        labels=labels,
        backends={record.metric: record.backend for record in records},
        notes=[*_general_notes(config, task), *task.notes(), *_failure_notes(records)],
        provenance=provenance(to_plain(config) | task.facts),
    )


def _general_notes(config: EvalConfig, task: Task) -> list[str]:
    interval = f"{100 * config.bootstrap.confidence_frac:g} % percentile bootstrap over utterances"
    worst = [
        f"{METRICS[metric].label} {show_value(metric, METRICS[metric].floor)}"
        for metric in task.metrics
        if METRICS[metric].floor is not None
    ]
    return [
        f"Intervals: {interval}, {config.bootstrap.resamples} resamples."
        + (" WER is the mean over utterances (macro)." if Metric.WER in task.metrics else ""),
        f"A missing or failed clip counts as the worst value: {', '.join(worst)}.",
    ]


def _failure_notes(records: Sequence[Record]) -> list[str]:
    failed = [record for record in records if record.error is not None]
    if not failed:
        return []
    notes = [f"{len(failed)} scores are missing:"]
    for record in failed[:_SHOWN_FAILURES]:
        notes.append(f"{record.system}, {record.utterance}, {METRICS[record.metric].label}: {record.error}")
    if len(failed) > _SHOWN_FAILURES:
        notes.append(f"and {len(failed) - _SHOWN_FAILURES} more, see scores.parquet")
    return notes
