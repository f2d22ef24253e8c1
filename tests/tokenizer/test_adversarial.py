"""Equations 5 to 7 of the report in numbers."""

import pytest
import torch
from torch import Tensor

from moss.config.tokenizer_training import DiscriminatorConfig
from moss.tokenizer.adversarial import adversarial_loss, discriminator_loss, feature_loss, feature_scales
from moss.tokenizer.discriminators import Discriminators


def maps(*values: float) -> list[Tensor]:
    return [torch.full((2, 3), value) for value in values]


def test_discriminator_loss() -> None:
    real = [maps(9.0, 0.5), maps(9.0, 1.0)]
    generated = [maps(9.0, 0.5), maps(9.0, -2.0)]
    # (0.25 + 0.25 + 0 + 4) / 2
    assert discriminator_loss(real, generated).item() == pytest.approx(2.25)
    assert discriminator_loss([maps(7.0, 1.0)], [maps(7.0, 0.0)]).item() == 0


def test_adversarial_loss() -> None:
    assert adversarial_loss([maps(9.0, 0.5), maps(9.0, -1.0)]).item() == pytest.approx((0.25 + 4) / 2)
    assert adversarial_loss([maps(9.0, 1.0)]).item() == 0


def test_feature_loss_is_relative_to_the_real_map_and_leaves_the_score_out() -> None:
    real = [maps(2.0, -4.0, 100.0), maps(1.0, 100.0)]
    generated = [maps(3.0, -4.0, 0.0), maps(0.0, 0.0)]
    # Maps 1/2 and 0/4 of the first, 1/1 of the second.
    assert feature_loss(real, generated).item() == pytest.approx((0.25 + 1.0) / 2)


def test_feature_loss_pulls_only_the_generated_side() -> None:
    real, generated = torch.ones(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    feature_loss([[real * 2, real]], [[generated * 2, generated]]).backward()
    assert real.grad is None
    assert generated.grad is not None
    assert generated.grad.any()


def test_shares_of_a_batch_with_the_scales_of_all_of_it_make_up_the_loss() -> None:
    random = torch.Generator().manual_seed(0)
    real, generated = ([[torch.randn(6, 3, generator=random) for _ in range(3)] for _ in range(2)] for _ in range(2))
    scales = feature_scales(real)
    assert scales.shape == (4,)
    parts = []
    for rows in (slice(0, 2), slice(2, 6)):
        mine, others = ([[x[rows] for x in maps] for maps in side] for side in (real, generated))
        parts.append(feature_loss(mine, others, scales))
    torch.testing.assert_close(parts[0] / 3 + parts[1] * 2 / 3, feature_loss(real, generated))


def test_feature_loss_survives_maps_of_zeros() -> None:
    assert feature_loss([maps(0.0, 1.0)], [maps(0.0, 1.0)]).item() == 0
    assert feature_loss([maps(0.0, 1.0)], [maps(1e-6, 1.0)]).isfinite()


def test_identical_waves_have_no_feature_loss() -> None:
    torch.manual_seed(0)
    module = Discriminators(
        DiscriminatorConfig(periods=[2], period_channels=[4, 4], stft_windows=[64], stft_channels=2), 8000
    )
    wave = torch.randn(2, 400)
    assert feature_loss(module(wave), module(wave.clone())).item() == 0
    assert feature_loss(module(wave), module(torch.randn(2, 400))).item() > 0.1


def test_half_precision_maps_have_full_precision_losses() -> None:
    half = [[x.bfloat16() for x in maps(2.0, 0.3)]]
    for loss in (discriminator_loss(half, half), adversarial_loss(half), feature_loss(half, half)):
        assert loss.dtype == torch.float32
