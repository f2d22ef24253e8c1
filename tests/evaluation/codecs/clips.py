"""What the tests of all codecs need: a voice, and where a reconstruction lies against it."""

from functools import cache

import numpy as np
import torch
from scipy import signal
from torch import Tensor

from moss.evaluation.codecs.interface import Codec
from moss.evaluation.metrics.signal import stoi
from tests.evaluation.signals import voice


@cache
def clip() -> Tensor:
    return torch.from_numpy(voice(2.5))


def waveform_lag(reference: Tensor, coded: Tensor) -> int:
    """Samples by which a reconstruction comes late."""
    product = signal.correlate(coded.numpy(), reference.numpy(), "full", method="fft")
    return int(np.argmax(product)) - (reference.shape[0] - 1)


def intelligibility(reference: Tensor, coded: Tensor, moved_earlier: int = 0) -> float:
    """STOI after moving the reconstruction by whole samples."""
    return stoi(reference.numpy(), np.roll(coded.numpy(), -moved_earlier))


def check_every_length(codec: Codec, silence_peak: float = 1e-3) -> None:
    """From a single sample to three minutes: the same length, finite; silence stays (nearly) silent."""
    for seconds in (1 / 16_000, 0.01, 0.06, 1.00001, 180.0):
        num_samples = round(seconds * codec.sampling_rate_hz)
        coded = codec.reconstruct(clip().repeat(num_samples // clip().shape[0] + 1)[:num_samples])
        assert coded.shape == (num_samples,)
        assert coded.dtype == torch.float32
        assert torch.isfinite(coded).all()
    for num_samples in (160, 32_000):
        silence = codec.reconstruct(torch.zeros(num_samples))
        assert silence.shape == (num_samples,)
        assert silence.abs().max() < silence_peak
