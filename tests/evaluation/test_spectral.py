import numpy as np
import pytest

from moss.errors import EvaluationError
from moss.evaluation.metrics.spectral import MEL_SILENCE, STFT_SILENCE, magnitude_distance, mel_distance, stft_distance
from tests.evaluation.signals import voice, with_noise

CLIP = voice(1.5)
DISTANCES = [mel_distance, stft_distance]


def by_torch(reference, degraded, *, mel):
    """The definition written with torch and its own short-time spectrum."""
    import librosa
    import torch

    total = 0.0
    for window, bands in ((2048, 150), (512, 80)):
        taper = torch.hann_window(window, dtype=torch.float64).sqrt()
        pair = []
        for wave in (reference, degraded):
            samples = torch.from_numpy(wave.astype(np.float64))
            spectrum = torch.stft(samples, window, window // 4, window=taper, return_complex=True).abs()
            if mel:
                filters = librosa.filters.mel(sr=16_000, n_fft=window, n_mels=bands).astype(np.float64)
                spectrum = torch.from_numpy(filters) @ spectrum
            pair.append(spectrum)
        logs = [spectrum.clamp(1e-5).square().log10() for spectrum in pair]
        total += float((pair[0] - pair[1]).abs().mean() + (logs[0] - logs[1]).abs().mean())
    return total


@pytest.mark.parametrize("distance", DISTANCES)
def test_identical_clips_have_no_distance(distance):
    assert distance(CLIP, CLIP) == 0.0


@pytest.mark.parametrize("distance", DISTANCES)
def test_blocks_are_the_whole(distance, monkeypatch):
    degraded = with_noise(CLIP, 10)
    whole = distance(CLIP, degraded)
    # 47 and 188 positions.
    monkeypatch.setattr("moss.evaluation.metrics.spectral._BLOCK_POSITIONS", 40)
    assert distance(CLIP, degraded) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(("distance", "mel"), [(mel_distance, True), (stft_distance, False)])
@pytest.mark.parametrize("snr_db", [30, 5])
def test_definition(distance, mel, snr_db):
    noisy = with_noise(CLIP, snr_db)
    assert distance(CLIP, noisy) == pytest.approx(by_torch(CLIP, noisy, mel=mel), rel=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_more_noise_is_further_away(distance):
    found = [distance(CLIP, with_noise(CLIP, snr_db)) for snr_db in (40, 20, 0)]
    assert found == sorted(found)
    assert 0 < found[0] < found[-1]


@pytest.mark.parametrize(("distance", "floor"), [(mel_distance, MEL_SILENCE), (stft_distance, STFT_SILENCE)])
def test_a_hardly_audible_clip_is_about_as_far_away_as_a_failed_one(distance, floor):
    # Speech in a room, with nothing exactly silent.
    room = with_noise(CLIP, 30)
    assert distance(room, 1e-7 * CLIP) == pytest.approx(floor, rel=0.35)


def test_both_parts_count_alike_and_the_logarithm_is_clamped():
    loud, quiet = np.array([[1.0, 1e-9]]), np.array([[0.1, 1e-7]])
    # 0.9 and nearly 0 on the linear scale; 2 and, below the clamp, 0 on the logarithmic one.
    assert magnitude_distance(loud, quiet) == pytest.approx(0.45 + 1.0, abs=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_pairs_are_cut_to_the_shorter(distance):
    assert distance(CLIP, CLIP[:-4000]) == distance(CLIP[:-4000], CLIP[:-4000]) == 0.0


@pytest.mark.parametrize("distance", DISTANCES)
def test_clips_that_cannot_be_compared(distance):
    with pytest.raises(EvaluationError, match=r"1024 samples are too few, at least 1025 \(64 ms\)"):
        distance(CLIP[4000:5024], CLIP[4000:5024])
    assert distance(CLIP[4000:5025], CLIP[4000:5025]) == 0.0
    with pytest.raises(EvaluationError, match="the degraded clip is silent"):
        distance(CLIP, np.zeros_like(CLIP))
