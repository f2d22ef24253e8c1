"""The mel loss against librosa, its zero, and its gradient in silence."""

import pytest
import torch

from moss.tokenizer.losses import MEL_BINS, MEL_WINDOWS, MultiScaleMelLoss, slaney_mel_filters


@pytest.mark.parametrize(("window", "bins"), list(zip(MEL_WINDOWS, MEL_BINS, strict=True)))
def test_filters_are_librosas(window: int, bins: int) -> None:
    import librosa

    expected = torch.from_numpy(librosa.filters.mel(sr=24_000, n_fft=window, n_mels=bins))
    torch.testing.assert_close(slaney_mel_filters(24_000, window, bins), expected, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("window", MEL_WINDOWS)
@pytest.mark.parametrize("normalised", [True, False])
def test_log_mel_is_that_of_torch_stft(window: int, normalised: bool) -> None:
    loss = MultiScaleMelLoss(24_000, normalised_stft=normalised)
    wave = torch.randn(2, 4800, generator=torch.Generator().manual_seed(0)) * 0.1
    spectrum = torch.stft(
        wave, window, window // 4, window=torch.hann_window(window), normalized=normalised, return_complex=True
    )
    filters = slaney_mel_filters(24_000, window, MEL_BINS[MEL_WINDOWS.index(window)])
    expected = (filters @ spectrum.abs()).clamp(min=1e-5).log10().transpose(1, 2)
    torch.testing.assert_close(loss.log_mel(wave, window), expected, atol=1e-4, rtol=0)


def test_identical_waves_have_no_loss() -> None:
    wave = torch.randn(2, 9600)
    assert MultiScaleMelLoss(24_000)(wave, wave).item() == 0


def test_ten_times_the_amplitude_is_one_per_window() -> None:
    wave = torch.randn(1, 24_000)
    assert MultiScaleMelLoss(24_000)(10 * wave, wave).item() == pytest.approx(len(MEL_WINDOWS), rel=1e-4)


def test_silence_has_a_finite_gradient() -> None:
    silence = torch.zeros(1, 4800, requires_grad=True)
    MultiScaleMelLoss(24_000)(silence, torch.randn(1, 4800)).backward()
    assert silence.grad is not None
    assert silence.grad.isfinite().all()


def test_a_clip_shorter_than_half_the_longest_window_has_a_loss() -> None:
    loss = MultiScaleMelLoss(24_000)(torch.zeros(1, 500), torch.randn(1, 500))
    assert loss.isfinite()
    assert loss > 0
