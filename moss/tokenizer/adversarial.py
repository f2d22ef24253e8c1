"""Least-squares adversarial losses and feature matching over the outputs of `discriminators.Discriminators`.

Source: MOSS-TTS technical report (arXiv 2603.18090) eq. 5 to 7.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

FeatureMaps = Sequence[Sequence[Tensor]]
"""Per discriminator its feature maps, the last of which is the score."""

SMALLEST_FEATURE = 1e-5
"""Lower bound of a map's mean absolute value, against division by zero."""


def discriminator_loss(real: FeatureMaps, generated: FeatureMaps) -> Tensor:
    """Eq. 6: scores of real waves to 1, those of generated ones to 0; mean over discriminators.

    Args:
        real: Of the real waves.
        generated: Of waves that were detached from the generator.
    """
    losses = [
        (1 - of_real[-1].float()).square().mean() + of_generated[-1].float().square().mean()
        for of_real, of_generated in zip(real, generated, strict=True)
    ]
    return torch.stack(losses).mean()


def adversarial_loss(generated: FeatureMaps) -> Tensor:
    """Eq. 5: what the generator pays for scores of its waves away from 1; mean over discriminators."""
    return torch.stack([(1 - maps[-1].float()).square().mean() for maps in generated]).mean()


def feature_scales(real: FeatureMaps) -> Tensor:
    """Mean absolute value (maps,) of every real map but the scores, which `feature_loss` divides by."""
    return torch.stack([target.detach().abs().mean(dtype=torch.float32) for maps in real for target in maps[:-1]])


def feature_loss(real: FeatureMaps, generated: FeatureMaps, scales: Tensor | None = None) -> Tensor:
    """Eq. 7: distance of all maps but the scores, each relative to the mean absolute value of the real one.

    The real maps are constants: only the generated wave is pulled.

    Args:
        real: Of the real waves.
        generated: Of the generated ones.
        scales: `feature_scales`; where several processes share the batch, those of the whole batch.
    """
    divisors = iter((feature_scales(real) if scales is None else scales).clamp(min=SMALLEST_FEATURE))
    losses = []
    for of_real, of_generated in zip(real, generated, strict=True):
        relative = []
        for target, value in zip(of_real[:-1], of_generated[:-1], strict=True):
            distance = (value - target.detach()).abs().mean(dtype=torch.float32)
            relative.append(distance / next(divisors))
        losses.append(torch.stack(relative).mean())
    return torch.stack(losses).mean()
