from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from moss.errors import EvaluationError
from moss.evaluation.metrics.signal import duration_error, pesq_nb_8k, pesq_nb_16k, pesq_wb, stoi
from tests.evaluation.signals import voice, with_noise

METRICS = [pesq_nb_16k, pesq_nb_8k, pesq_wb, stoi]
CLIP = voice(1.5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("reference", "degraded", "reason"),
    [
        (CLIP, np.zeros_like(CLIP), "degraded clip is silent"),
        (np.zeros_like(CLIP), CLIP, "reference clip is silent"),
        (CLIP, CLIP[:0], "degraded clip is empty"),
        (CLIP[None], CLIP, "expected mono"),
        (CLIP, np.where(np.arange(CLIP.size) == 5, np.nan, CLIP), "not finite"),
    ],
)
def test_clips_that_cannot_be_scored(metric, reference, degraded, reason):
    with pytest.raises(EvaluationError, match=reason):
        metric(reference, degraded)


@pytest.mark.parametrize("metric", [pesq_nb_16k, pesq_nb_8k, pesq_wb])
def test_pesq_needs_a_quarter_of_a_second(metric):
    with pytest.raises(EvaluationError, match="at least 1/4 of a second"):
        metric(CLIP[:3200], CLIP[:3200])


@pytest.mark.parametrize("metric", [pesq_nb_16k, pesq_nb_8k, pesq_wb])
def test_pesq_reports_what_the_library_reports(metric):
    quiet = CLIP * 1e-30
    with pytest.raises(EvaluationError, match=r"PESQ-.. failed: .+ \(\w+Error\)"):
        metric(quiet, CLIP)


def test_many_bursts_do_not_end_the_process():
    # 68 of them in 30 s, for which the package has no room.
    bursts = np.tile(np.concatenate([voice(0.22), np.zeros(3520)]), 68)
    assert pesq_wb(bursts, bursts) == pytest.approx(4.64, abs=0.01)


def test_long_clips_have_the_mean_of_their_pieces():
    part = np.tile(CLIP, 14)[: 20 * 16000]
    noisy, faint, click = with_noise(part, 10), np.full_like(part, 1e-9), np.zeros_like(part)
    click[1600:3200] = np.random.default_rng(0).normal(size=1600)
    reference = np.concatenate([part, faint, click, part])
    degraded = np.concatenate([part, faint, click, noisy])
    expected = (pesq_wb(part, part) + pesq_wb(part, noisy)) / 2
    assert pesq_wb(reference, degraded) == pytest.approx(expected, abs=1e-6)
    lost = np.concatenate([part, np.zeros_like(part)])
    assert pesq_wb(np.tile(part, 2), lost) == pytest.approx((pesq_wb(part, part) + 1.0) / 2, abs=1e-6)
    with pytest.raises(EvaluationError, match=r"PESQ-WB failed: .+ \(NoUtterancesError\)"):
        pesq_wb(np.tile(click, 2), np.tile(click, 2))


@pytest.mark.parametrize("extended", [False, True])
def test_stoi_of_long_clips_is_the_mean_of_their_pieces(extended, monkeypatch):
    monkeypatch.setattr("moss.evaluation.metrics.signal.STOI_WHOLE_S", 3)
    monkeypatch.setattr("moss.evaluation.metrics.signal.STOI_PIECE_S", 2)
    clip = voice(2.0)
    faint, noisy, click = clip * 1e-3, with_noise(clip, 0), np.zeros_like(clip)
    click[100:200] = 1.0
    reference = np.concatenate([clip, faint, click, clip])
    degraded = np.concatenate([clip, with_noise(faint, -20), click, noisy])
    expected = (1 + stoi(clip, noisy, extended=extended)) / 2
    assert stoi(reference, degraded, extended=extended) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("samples", [300, 409, 410, 3200])
@pytest.mark.parametrize("extended", [False, True])
def test_stoi_of_too_little_speech_is_an_error_and_no_score(samples, extended):
    with pytest.raises(EvaluationError, match="less than 30 frames"):
        stoi(CLIP[:samples], CLIP[:samples], extended=extended)


def test_clips_that_are_too_short_do_not_disturb_others_in_other_threads():
    def score(samples):
        try:
            return stoi(CLIP[:samples], CLIP[:samples])
        except EvaluationError:
            return None

    with ThreadPoolExecutor(4) as pool:
        scores = list(pool.map(score, [3200, len(CLIP)] * 30))
    assert scores[::2] == [None] * 30
    assert scores[1::2] == [pytest.approx(1.0)] * 30


def test_pairs_are_cut_to_the_shorter():
    assert stoi(CLIP, CLIP[:-4000]) == pytest.approx(1.0)


def test_duration_error_is_relative_to_the_target():
    assert duration_error(2.0, 4.0) == duration_error(6.0, 4.0) == 0.5
    assert duration_error(4.0, 4.0) == 0.0
    with pytest.raises(EvaluationError, match="longer than 0 s"):
        duration_error(1.0, 0.0)


def test_narrow_band_pesq_at_its_own_rate_differs_by_up_to_a_tenth():
    noisy = with_noise(CLIP, 10)
    assert pesq_nb_8k(CLIP, CLIP) == pytest.approx(pesq_nb_16k(CLIP, CLIP), abs=1e-4)
    assert 0.001 < abs(pesq_nb_8k(CLIP, noisy) - pesq_nb_16k(CLIP, noisy)) < 0.3
