import numpy as np
import pytest

from moss.config.evaluation import BootstrapConfig, Metric
from moss.errors import EvaluationError
from moss.evaluation.aggregate import bootstrap_ratio, score_records
from moss.evaluation.records import Record

SETTINGS = BootstrapConfig(resamples=2000)


def record(value, *, error=None, metric=Metric.SIM, backend="b", extra=None, utterance="u"):
    return Record(
        system="s",
        group="",
        utterance=utterance,
        metric=metric,
        value=value,
        error=error,
        backend=backend,
        protocol="p",
        key="k",
        extra=extra or {},
    )


def wer(value, hits, substitutions, deletions, insertions):
    counts = {"hits": hits, "substitutions": substitutions, "deletions": deletions, "insertions": insertions}
    return record(value, metric=Metric.WER, extra=counts)


def test_failures_enter_the_mean_at_the_floor_and_are_counted():
    score = score_records(Metric.SIM, [record(0.8), record(0.6), record(None, error="gone")], SETTINGS)
    assert score.mean == pytest.approx(1.4 / 3)
    assert score.mean_scored == pytest.approx(0.7)
    assert (score.n_scored, score.n_expected, score.n_invalid) == (2, 3, 0)


@pytest.mark.parametrize(
    ("metric", "floor"),
    [
        (Metric.WER, 1.0),
        (Metric.SIM, 0.0),
        (Metric.DURATION_ERROR, 1.0),
        (Metric.PESQ_NB_16K, 1.0),
        (Metric.PESQ_WB, 1.0),
        (Metric.STOI, 0.0),
        (Metric.ESTOI, 0.0),
        (Metric.PESQ_NB_8K, 1.0),
        (Metric.MEL_DISTANCE, 12.0),
        (Metric.STFT_DISTANCE, 16.6),
    ],
)
def test_floor_of_every_metric(metric, floor):
    failed = record(None, error="gone", metric=metric, extra={"num_tokens": 3})
    score = score_records(metric, [failed], SETTINGS)
    assert (score.mean, score.low, score.high, score.n_scored, score.mean_scored) == (floor, floor, floor, 0, None)


def test_failure_takes_no_time_and_is_not_in_the_mean_of_times():
    def taken(seconds, audio_s):
        extra = {"processing_s": seconds, "audio_s": audio_s}
        return record(seconds / audio_s, metric=Metric.RTF, extra=extra)

    failed = record(None, error="gone", metric=Metric.RTF)
    score = score_records(Metric.RTF, [taken(1.0, 2.0), taken(1.0, 10.0), failed], SETTINGS)
    assert score.mean == score.mean_scored == pytest.approx(0.3)
    assert score.corpus == pytest.approx(2 / 12)
    assert (score.n_scored, score.n_expected) == (2, 3)
    alone = score_records(Metric.RTF, [failed], SETTINGS)
    assert (alone.mean, alone.n_scored, alone.n_expected) == (None, 0, 1)


def test_corpus_rate_loses_every_word_of_a_failed_clip():
    failed = record(None, error="gone", metric=Metric.WER, extra={"num_tokens": 6})
    score = score_records(Metric.WER, [wer(0.25, 3, 1, 0, 0), wer(0.5, 2, 0, 0, 1), failed], SETTINGS)
    assert score.mean == pytest.approx((0.25 + 0.5 + 1) / 3)
    assert score.corpus == pytest.approx((1 + 1 + 6) / (4 + 2 + 6))
    assert score.corpus_low <= score.corpus <= score.corpus_high


def test_invalid_references_are_excluded_and_counted():
    invalid = record(None, error="invalid_ref: text '' is empty", metric=Metric.WER)
    score = score_records(Metric.WER, [wer(0.5, 1, 1, 0, 0), invalid], SETTINGS)
    assert (score.mean, score.n_scored, score.n_expected, score.n_invalid) == (0.5, 1, 1, 1)
    alone = score_records(Metric.WER, [invalid], SETTINGS)
    assert (alone.mean, alone.n_expected, alone.n_invalid) == (None, 0, 1)


def test_interval_covers_the_mean_of_the_population():
    population = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        drawn = population.normal(3.0, 1.0, 60)
        _, low, high = bootstrap_ratio(drawn, np.ones(60), BootstrapConfig(resamples=500))
        covered += low <= 3.0 <= high
    assert 88 <= covered <= 99


def test_interval_is_the_same_every_time_and_in_any_chunks(monkeypatch):
    values = np.random.default_rng(1).random(50)
    whole = bootstrap_ratio(values, np.ones(50), SETTINGS)
    assert bootstrap_ratio(values, np.ones(50), SETTINGS) == whole
    monkeypatch.setattr("moss.evaluation.aggregate._CHUNK_VALUES", 50 * 7)
    assert bootstrap_ratio(values, np.ones(50), SETTINGS) == whole
    assert bootstrap_ratio(values, np.ones(50), BootstrapConfig(resamples=2000, seed=1)) != whole


def test_wider_confidence_widens_the_interval():
    values = np.random.default_rng(1).random(50)
    _, low, high = bootstrap_ratio(values, np.ones(50), SETTINGS)
    _, lower, higher = bootstrap_ratio(values, np.ones(50), BootstrapConfig(resamples=2000, confidence_frac=0.99))
    assert lower < low < high < higher


def test_records_of_two_backends_are_not_averaged():
    with pytest.raises(EvaluationError, match="not comparable.*sim by b under p; sim by c under p"):
        score_records(Metric.SIM, [record(1.0), record(1.0, backend="c")], SETTINGS)
    with pytest.raises(EvaluationError, match="cannot be averaged as wer"):
        score_records(Metric.WER, [record(1.0)], SETTINGS)
    with pytest.raises(EvaluationError, match="no record of sim"):
        score_records(Metric.SIM, [], SETTINGS)
