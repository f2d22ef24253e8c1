"""Records to scores: means, corpus error rates and bootstrap intervals, with every failed clip counted.

A missing or failed clip enters each mean at the metric's floor (WER 1, SIM 0, PESQ 1, STOI 0, duration error 1). Only
an utterance whose reference text is empty is excluded, and counted as invalid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moss.config.evaluation import BootstrapConfig, Metric
from moss.errors import EvaluationError
from moss.evaluation.protocol import METRICS
from moss.evaluation.records import Record

_CHUNK_VALUES = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One number of a summary, as a fraction or in the metric's own unit, never in percent."""

    mean: float | None
    """Mean over all expected utterances, failures at the floor; for a metric without a floor, over those scored. None
    when nothing is left to average."""
    low: float | None
    high: float | None
    """Percentile bootstrap interval of `mean`."""
    n_scored: int
    n_expected: int
    n_invalid: int = 0
    """Excluded: the reference text is empty after normalisation."""
    mean_scored: float | None = None
    """Mean over the utterances that could be scored, for comparison; equal to `mean` when none failed."""
    corpus: float | None = None
    corpus_low: float | None = None
    corpus_high: float | None = None
    """WER: all errors over all reference tokens; every token of a failed clip is an error. RTF: seconds of work
    over seconds of audio, of all clips together."""


def score_records(metric: Metric, records: Sequence[Record], bootstrap: BootstrapConfig) -> Score:
    """Aggregate the records of one metric; there must be one for every expected utterance, failed ones included.

    Raises:
        EvaluationError: no record at all, a record of another metric, or of another backend or protocol.
    """
    _check_comparable(metric, records)
    valid = [record for record in records if not record.is_invalid]
    n_invalid = len(records) - len(valid)
    floor = METRICS[metric].floor
    scored = [record.value for record in valid if record.value is not None]
    averaged = valid if floor is not None else [record for record in valid if record.value is not None]
    if not averaged:
        return Score(mean=None, low=None, high=None, n_scored=0, n_expected=len(valid), n_invalid=n_invalid)
    values = np.array([floor if record.value is None else record.value for record in averaged], dtype=np.float64)
    mean, low, high = bootstrap_ratio(values, np.ones(len(values)), bootstrap)
    corpus: tuple[float, float, float] | tuple[None, None, None] = (None, None, None)
    if metric in _RATIOS:
        counts = np.array([_RATIOS[metric](record) for record in averaged], dtype=np.float64)
        corpus = bootstrap_ratio(counts[:, 0], counts[:, 1], bootstrap)
    return Score(
        mean=mean,
        low=low,
        high=high,
        n_scored=len(scored),
        n_expected=len(valid),
        n_invalid=n_invalid,
        mean_scored=float(np.mean(scored)) if scored else None,
        corpus=corpus[0],
        corpus_low=corpus[1],
        corpus_high=corpus[2],
    )


def bootstrap_ratio(
    numerators: NDArray[np.float64], denominators: NDArray[np.float64], settings: BootstrapConfig
) -> tuple[float, float, float]:
    """Sum over sum, with a percentile bootstrap interval over utterances; denominators of 1 give a mean.

    The same number of utterances always draws the same resamples, so that two systems scored on the same utterances
    in the same order are resampled together.

    Args:
        numerators: (utterances,).
        denominators: (utterances,), not negative, with a positive sum.
        settings: Resamples, confidence and seed.

    Returns:
        Estimate, lower and upper bound.
    """
    count = len(numerators)
    generator = np.random.default_rng(settings.seed)
    ratios = np.empty(settings.resamples)
    chunk = max(1, _CHUNK_VALUES // count)
    for start in range(0, settings.resamples, chunk):
        stop = min(start + chunk, settings.resamples)
        drawn = generator.integers(0, count, size=(stop - start, count))
        ratios[start:stop] = numerators[drawn].sum(axis=1) / denominators[drawn].sum(axis=1)
    tail = (1 - settings.confidence_frac) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return float(numerators.sum() / denominators.sum()), float(low), float(high)


def _word_counts(record: Record) -> tuple[int, int]:
    """Errors and reference tokens of a WER record; a failed clip has lost every token."""
    extra = record.extra
    if record.value is not None:
        wrong = extra["substitutions"] + extra["deletions"]
        return wrong + extra["insertions"], wrong + extra["hits"]
    return extra["num_tokens"], extra["num_tokens"]


def _seconds(record: Record) -> tuple[float, float]:
    """Work and audio of an RTF record."""
    return record.extra["processing_s"], record.extra["audio_s"]


_RATIOS: dict[Metric, Callable[[Record], tuple[float, float]]] = {Metric.WER: _word_counts, Metric.RTF: _seconds}


def _check_comparable(metric: Metric, records: Sequence[Record]) -> None:
    if not records:
        raise EvaluationError(f"no record of {metric.value}, so there is nothing to average; was anything scored?")
    kinds = {(record.metric, record.backend, record.protocol) for record in records}
    if len(kinds) > 1 or next(iter(kinds))[0] is not metric:
        shown = "; ".join(sorted(f"{kind[0].value} by {kind[1]} under {kind[2]}" for kind in kinds))
        raise EvaluationError(f"records that are not comparable cannot be averaged as {metric.value}: {shown}")
