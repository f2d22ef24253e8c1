"""Sizes of the published discriminators, their maps, input scaling, lengths, and that they learn."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moss.config.tokenizer_training import DiscriminatorConfig
from moss.errors import ConfigError, DataError
from moss.tokenizer.adversarial import adversarial_loss, discriminator_loss
from moss.tokenizer.discriminators import PEAK, PEAK_FLOOR, Discriminators, PeriodDiscriminator, centre_and_scale

RATE_HZ = 8000
SMALL = DiscriminatorConfig(
    periods=[2, 3],
    period_channels=[4, 8, 8],
    stft_windows=[128, 64],
    stft_bands=[0.0, 0.25, 1.0],
    stft_channels=4,
)


def discriminators(config: DiscriminatorConfig = SMALL) -> Discriminators:
    torch.manual_seed(0)
    return Discriminators(config, RATE_HZ)


def noise(items: int, samples: int, seed: int = 0) -> Tensor:
    return torch.randn(items, samples, generator=torch.Generator().manual_seed(seed)) * 0.1


def tones(items: int, samples: int) -> Tensor:
    rates_hz = torch.linspace(200, 2000, items)[:, None]
    return 0.3 * torch.sin(2 * math.pi * rates_hz * torch.arange(samples) / RATE_HZ)


def convolution_values(inputs: int, outputs: int, kernel: int) -> int:
    """Directions, a gain and a bias per output."""
    return inputs * outputs * kernel + 2 * outputs


def test_default_values_are_those_of_the_published_shapes() -> None:
    widths = [1, 32, 128, 512, 1024, 1024]
    period = sum(convolution_values(a, b, 5) for a, b in itertools.pairwise(widths)) + convolution_values(1024, 1, 3)
    band = convolution_values(2, 32, 27) + 3 * convolution_values(32, 32, 27) + convolution_values(32, 32, 9)
    module = Discriminators(DiscriminatorConfig(), 24_000)
    values = sum(parameter.numel() for parameter in module.parameters())
    assert values == 5 * period + 3 * (5 * band + convolution_values(32, 1, 9)) == 42_519_760


def test_maps_and_scores_have_the_shapes_of_strides_and_bands() -> None:
    outputs = discriminators()(noise(5, 1000))
    assert len(outputs) == 4
    # 1000 samples are 334 steps of 3 phases; two of the three convolutions have stride 3.
    assert [tuple(x.shape) for x in outputs[1]] == [(15, 4, 112), (15, 8, 38), (15, 8, 38), (15, 1, 38)]
    # Window 128: 65 bins in bands of 16 and 49, halved three times; positions are 32 samples apart.
    low = [(5, 4, 32, bins) for bins in (16, 8, 4, 2, 2)]
    high = [(5, 4, 32, bins) for bins in (49, 25, 13, 7, 7)]
    assert [tuple(x.shape) for x in outputs[2]] == [*low, *high, (5, 1, 32, 9)]


def test_a_period_is_a_two_dimensional_convolution_of_width_one() -> None:
    torch.manual_seed(0)
    module = PeriodDiscriminator(3, [4, 8])
    wave = noise(2, 100)
    x = F.pad(wave[:, None], (0, 2), mode="reflect").reshape(2, 1, 34, 3)
    for i, stride in enumerate((3, 1)):
        layer = module.convolutions[i]
        x = F.leaky_relu(F.conv2d(x, layer.weight[..., None], layer.bias, (stride, 1), (2, 0)), 0.1)
        folded = module(wave)[i].unflatten(0, (2, 3)).permute(0, 2, 3, 1)
        torch.testing.assert_close(folded, x, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("samples", [1, 2, 5, 31, 33, 64, 65, 129, 1001])
def test_any_length_has_finite_scores_and_gradients(samples: int) -> None:
    wave = noise(2, samples).requires_grad_()
    outputs = discriminators()(wave)
    assert all(x.isfinite().all() and x.numel() for maps in outputs for x in maps)
    adversarial_loss(outputs).backward()
    assert wave.grad is not None
    assert wave.grad.isfinite().all()


def test_no_samples_are_refused() -> None:
    with pytest.raises(DataError, match=r"got waves of 0 samples \(shape \(3, 0\)\), expected at least 1; leave empty"):
        discriminators()(torch.zeros(3, 0))


def test_offset_and_loudness_do_not_matter() -> None:
    wave = noise(2, 500)
    plain, moved = discriminators()(wave), discriminators()(wave * 0.3 + 0.2)
    for a, b in zip(plain, moved, strict=True):
        torch.testing.assert_close(a[-1], b[-1], atol=1e-4, rtol=1e-4)


def test_input_is_centred_and_has_the_same_peak() -> None:
    scaled = centre_and_scale(noise(3, 400) + 0.5)
    torch.testing.assert_close(scaled.abs().amax(1), torch.full((3,), PEAK))
    torch.testing.assert_close(scaled.mean(1), torch.zeros(3), atol=1e-6, rtol=0)


def test_silence_stays_silent_with_a_bounded_gradient() -> None:
    silence = torch.zeros(1, 300).requires_grad_()
    scaled = centre_and_scale(silence)
    assert not scaled.any()
    scaled[0, 7].backward()
    assert silence.grad is not None
    assert silence.grad.abs().max() <= PEAK / PEAK_FLOOR
    faint = centre_and_scale(noise(1, 300) * PEAK_FLOOR * 0.01)
    assert faint.abs().max() < 0.01


def test_items_are_judged_alone() -> None:
    module, wave = discriminators(), noise(3, 700)
    wave[1] *= 50
    together = module(wave)
    alone = module(wave[2:])
    for maps, one in zip(together, alone, strict=True):
        torch.testing.assert_close(maps[-1][-len(one[-1]) :], one[-1], atol=1e-5, rtol=1e-5)


def test_a_band_without_a_bin_is_refused() -> None:
    config = DiscriminatorConfig(stft_windows=[2048, 16])
    message = r"the band from 0 to 1200 Hz holds no bin of window 16, whose bins are 1500 Hz apart; widen the band"
    with pytest.raises(ConfigError, match=message):
        Discriminators(config, 24_000)


def test_a_window_without_a_hop_is_refused() -> None:
    with pytest.raises(ConfigError, match="stft_windows: expected at least 4 samples .* got 3"):
        Discriminators(DiscriminatorConfig(stft_windows=[3]), 24_000)


def test_they_learn_to_tell_noise_from_tones() -> None:
    module = discriminators()
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-3, betas=(0.8, 0.99))
    real = tones(3, 600)
    for step in range(45):
        loss = discriminator_loss(module(real), module(noise(3, 600, step)))
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            assert all(p.grad is not None and p.grad.any() for p in module.parameters())
            first = loss.item()
        optimizer.step()
    assert first > 0.8
    with torch.no_grad():
        unheard_real, unheard_noise = module(tones(2, 600)), module(noise(3, 600, 99))
    for judged_real, judged_noise in zip(unheard_real, unheard_noise, strict=True):
        assert judged_real[-1].mean() > judged_noise[-1].mean() + 0.3
    assert discriminator_loss(unheard_real, unheard_noise) < 0.5 * first
