"""The mel loss against librosa and torch, its zero, its gradient; the distance of samples, and mid and side."""

import pytest
import torch
from torch import Tensor

from moss.tokenizer.losses import (
    MEL_BINS,
    MEL_WINDOWS,
    QUIETEST,
    MultiScaleMelLoss,
    mid_side,
    slaney_mel_filters,
    waveform_loss,
)


@pytest.mark.parametrize(("window", "bins"), list(zip(MEL_WINDOWS, MEL_BINS, strict=True)))
def test_filters_are_librosas(window: int, bins: int) -> None:
    import librosa

    expected = torch.from_numpy(librosa.filters.mel(sr=24_000, n_fft=window, n_mels=bins))
    torch.testing.assert_close(slaney_mel_filters(24_000, window, bins), expected, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("window", MEL_WINDOWS)
def test_log_mel_is_that_of_torch_stft(window: int) -> None:
    loss = MultiScaleMelLoss(24_000)
    wave = torch.randn(2, 4800, generator=torch.Generator().manual_seed(0)) * 0.1
    spectrum = torch.stft(
        wave, window, window // 4, window=torch.hann_window(window), normalized=True, return_complex=True
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


def plain_loss(generated: Tensor, target: Tensor, tapers: MultiScaleMelLoss) -> Tensor:
    """The same distance out of torch's own differentiable parts."""
    total = generated.new_zeros(())
    for window, bins in zip(MEL_WINDOWS, MEL_BINS, strict=True):
        filters = slaney_mel_filters(24_000, window, bins).to(generated.dtype)
        logs = []
        for wave in (generated, target):
            taper = tapers.get_buffer(f"taper_{window}")
            spectrum = torch.stft(wave, window, window // 4, window=taper, return_complex=True)
            power = spectrum.real.square() + spectrum.imag.square()
            logs.append((filters @ (power + 1e-14).sqrt()).clamp(min=1e-5).log10())
        total = total + (logs[0] - logs[1]).abs().mean()
    return total


@pytest.mark.parametrize("samples", [2500, 4801])
def test_value_and_gradient_are_those_of_the_plain_computation(samples: int) -> None:
    random = torch.Generator().manual_seed(0)
    target = torch.randn(3, samples, generator=random, dtype=torch.float64) * 0.1
    start = torch.randn(3, samples, generator=random, dtype=torch.float64) * 0.05
    module = MultiScaleMelLoss(24_000).double()
    gradients, values = [], []
    for loss in (lambda a, b: plain_loss(a, b, module), module):
        generated = start.clone().requires_grad_()
        value = loss(generated, target)
        value.backward()
        values.append(value.item())
        assert generated.grad is not None
        gradients.append(generated.grad)
    assert values[1] == pytest.approx(values[0], rel=1e-9)
    assert (gradients[1] - gradients[0]).norm() < 1e-9 * gradients[0].norm()


def test_mixed_precision_does_not_reach_the_distance() -> None:
    loss = MultiScaleMelLoss(24_000)
    wave, other = torch.randn(1, 4800), torch.randn(1, 4800)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = loss(wave, other)
    assert mixed.item() == loss(wave, other).item()


def test_waveform_loss_is_relative_over_the_batch() -> None:
    target = torch.tensor([[0.1, -0.1, 0.1, -0.1], [0.3, 0.3, -0.3, -0.3]])
    assert waveform_loss(target, target).item() == 0
    assert waveform_loss(torch.zeros_like(target), target).item() == pytest.approx(1)
    # Errors of 0.1 in half of the samples, against a mean magnitude of 0.2.
    assert waveform_loss(target + torch.tensor([[0.1], [0.0]]), target).item() == pytest.approx(0.25)


def test_waveform_loss_survives_silence() -> None:
    generated = torch.full((2, 10), 0.01, requires_grad=True)
    loss = waveform_loss(generated, torch.zeros(2, 10))
    assert loss.item() == pytest.approx(0.01 / QUIETEST)
    loss.backward()
    assert generated.grad is not None
    assert generated.grad.isfinite().all()


def test_mid_and_side() -> None:
    left, right = torch.randn(3, 50), torch.randn(3, 50)
    stacked = mid_side(torch.stack((left, right), 1))
    assert stacked.shape == (6, 50)
    torch.testing.assert_close(stacked[0::2], (left + right) / 2)
    torch.testing.assert_close(stacked[1::2], (left - right) / 2)
    opposite = mid_side(torch.stack((left, -left), 1))
    assert not opposite[0::2].any()


def test_mid_side_takes_stereo_only() -> None:
    with pytest.raises(AssertionError, match=r"expected \(B, 2, N\), got \(3, 50\)"):
        mid_side(torch.zeros(3, 50))
