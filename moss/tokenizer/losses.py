"""Reconstruction losses of the audio tokenizer: log-mel distance at seven time scales, and that of the samples.

The quantizer's two losses are computed where the codes are chosen (`quantizer.ResidualQuantizer`).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

MEL_WINDOWS = (32, 64, 128, 256, 512, 1024, 2048)
MEL_BINS = (5, 10, 20, 40, 80, 160, 320)
FILTER_BLOCK = 40
"""Mel filters that are multiplied at once, with the Fourier bins that any of them covers: most others are zero."""
QUIETEST = 1e-3
"""-60 dBFS: the mean magnitude that a target counts as at least, so that silence does not outweigh speech."""


class MultiScaleMelLoss(nn.Module):
    """Sum over window lengths of the mean absolute difference of log10 mel magnitudes.

    Windows are periodic Hann, the hop a quarter of the window, the filters Slaney's from 0 Hz to half the rate.
    Source: MOSS-TTS technical report (arXiv 2603.18090) eq. 4 for windows and norm; the filters, the floor and the
    logarithm are descript-audio-codec's, whose loss weights the report uses.
    """

    def __init__(
        self,
        sampling_rate_hz: int,
        windows: tuple[int, ...] = MEL_WINDOWS,
        bins: tuple[int, ...] = MEL_BINS,
        *,
        floor: float = 1e-5,
    ) -> None:
        """Precompute windows and filters.

        Args:
            sampling_rate_hz: Rate of the waveforms.
            windows: Window lengths in samples.
            bins: Mel bins of each window.
            floor: Magnitudes below it count as silence.
        """
        super().__init__()
        assert len(windows) == len(bins)
        self.windows = windows
        self.floor = floor
        self._blocks: dict[int, list[_FilterBlock]] = {}
        for window, count in zip(windows, bins, strict=True):
            # Spectra are divided by the square root of the window length, as the report says.
            self.register_buffer(f"taper_{window}", torch.hann_window(window) * window**-0.5, persistent=False)
            filters = slaney_mel_filters(sampling_rate_hz, window, count)
            self.register_buffer(f"filters_{window}", filters.T.contiguous(), persistent=False)
            self._blocks[window] = _filter_blocks(filters)

    def log_mel(self, wave_BN: Tensor, window: int) -> Tensor:
        """log10 mel magnitudes (B, positions, bins) of waveforms (B, N); positions are a quarter window apart."""
        mode = "reflect" if wave_BN.shape[-1] > window // 2 else "constant"
        padded = F.pad(wave_BN[:, None], (window // 2, window // 2), mode=mode)[:, 0]
        taper, filters = self.get_buffer(f"taper_{window}"), self.get_buffer(f"filters_{window}")
        # Products in half precision, as mixed-precision training would compute them, are too coarse for a distance.
        with torch.autocast(padded.device.type, enabled=False):
            mel: Tensor = _MelMagnitudes.apply(padded.to(taper.dtype), taper, filters, self._blocks[window])
        return mel.clamp(min=self.floor).log10()

    def forward(self, generated_BN: Tensor, target_BN: Tensor) -> Tensor:
        """Scalar distance of two waveform batches (B, N)."""
        total = generated_BN.new_zeros(())
        for window in self.windows:
            with torch.no_grad():
                target = self.log_mel(target_BN, window)
            total = total + (self.log_mel(generated_BN, window) - target).abs().mean()
        return total


def waveform_loss(generated_BN: Tensor, target_BN: Tensor) -> Tensor:
    """Mean absolute difference of the samples, relative to the mean magnitude of the whole target batch (B, N)."""
    return (generated_BN - target_BN).abs().mean() / target_BN.abs().mean().clamp(min=QUIETEST)


def mid_side(wave_B2N: Tensor) -> Tensor:
    """Stereo waves (B, 2, N) as (B * 2, N): item after item (left + right) / 2, then (left - right) / 2."""
    assert wave_B2N.shape[1:-1] == (2,), f"expected (B, 2, N), got {tuple(wave_B2N.shape)}"
    left, right = wave_B2N.unbind(1)
    return torch.stack((left + right, left - right), 1).flatten(0, 1) / 2


def slaney_mel_filters(sampling_rate_hz: int, window: int, bins: int) -> Tensor:
    """Triangular mel filters (bins, window / 2 + 1) of unit area, linear below 1 kHz and logarithmic above.

    Source: Slaney, Auditory Toolbox (1998), as librosa's `filters.mel` computes them by default.
    """
    top = _hz_to_mel(sampling_rate_hz / 2)
    edges_hz = torch.tensor([_mel_to_hz(top * i / (bins + 1)) for i in range(bins + 2)], dtype=torch.float64)
    bands_hz = torch.linspace(0, sampling_rate_hz / 2, window // 2 + 1, dtype=torch.float64)
    slopes = bands_hz[None, :] - edges_hz[:, None]
    widths = edges_hz.diff()
    rising = slopes[:-2] / widths[:-1, None]
    falling = -slopes[2:] / widths[1:, None]
    triangles = torch.minimum(rising, falling).clamp(min=0)
    return (triangles * 2 / (edges_hz[2:] - edges_hz[:-2])[:, None]).float()


_FilterBlock = tuple[slice, slice]
"""Fourier bins, and the mel filters that are zero outside them."""


def _filter_blocks(filters: Tensor) -> list[_FilterBlock]:
    """Blocks of mel filters (bins, Fourier bins) with the Fourier bins they cover."""
    blocks = []
    for first in range(0, len(filters), FILTER_BLOCK):
        mine = slice(first, min(first + FILTER_BLOCK, len(filters)))
        covered = filters[mine].any(0).nonzero()[:, 0]
        blocks.append((slice(int(covered.min()), int(covered.max()) + 1) if len(covered) else slice(0, 0), mine))
    return blocks


class _MelMagnitudes(torch.autograd.Function):
    """Mel magnitudes (B, positions, bins) of padded waves (B, N), with a gradient that is one inverse transform.

    Torch differentiates a real transform by a complex one of twice the size, and sums pairs of adjacent numbers, as
    real and imaginary parts are, an order of magnitude slower than it adds two arrays.
    """

    @staticmethod
    def forward(ctx: Any, padded_BN: Tensor, taper: Tensor, filters: Tensor, blocks: list[_FilterBlock]) -> Tensor:
        hop = len(taper) // 4
        count = (padded_BN.shape[1] - len(taper)) // hop + 1
        quarters = padded_BN[:, : (count + 3) * hop].unflatten(1, (-1, hop))
        tapered = torch.cat([quarters[:, i : i + count] for i in range(4)], -1).mul_(taper)
        spectrum = torch.fft.rfft(tapered)
        real, imaginary = torch.view_as_real(spectrum).unbind(-1)
        # The square root has no gradient at exactly zero, which silence reaches.
        magnitude = real.square().addcmul_(imaginary, imaginary).add_(1e-14).sqrt_()
        ctx.save_for_backward(spectrum, magnitude, taper, filters)
        ctx.blocks, ctx.num_samples = blocks, padded_BN.shape[1]
        return torch.cat([magnitude[..., bins] @ filters[bins, mine] for bins, mine in blocks], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, mel_gradient: Tensor) -> tuple[Tensor, None, None, None]:
        spectrum, magnitude, taper, filters = ctx.saved_tensors
        batch, count, num_bins = magnitude.shape
        hop = len(taper) // 4
        gradient = magnitude.new_zeros(batch * count, num_bins)
        for bins, mine in ctx.blocks:
            gradient[:, bins].addmm_(mel_gradient[..., mine].flatten(0, 1), filters[bins, mine].T)
        gradient = gradient.view_as(magnitude).div_(magnitude)
        # The inverse adds each inner bin's conjugate, which is no output of the forward transform.
        gradient[..., 1:-1].mul_(0.5)
        tapered = torch.fft.irfft(spectrum * gradient, n=len(taper), norm="forward").mul_(taper)
        wave = magnitude.new_zeros(batch, ctx.num_samples)
        quarters = wave[:, : (count + 3) * hop].unflatten(1, (-1, hop))
        for i in range(4):
            quarters[:, i : i + count] += tapered[..., i * hop : (i + 1) * hop]
        return wave, None, None, None


_HZ_PER_MEL = 200 / 3
_KNEE_HZ = 1000.0
_KNEE_MEL = _KNEE_HZ / _HZ_PER_MEL
_LOG_STEP = math.log(6.4) / 27


def _hz_to_mel(hz: float) -> float:
    return hz / _HZ_PER_MEL if hz < _KNEE_HZ else _KNEE_MEL + math.log(hz / _KNEE_HZ) / _LOG_STEP


def _mel_to_hz(mel: float) -> float:
    return mel * _HZ_PER_MEL if mel < _KNEE_MEL else _KNEE_HZ * math.exp(_LOG_STEP * (mel - _KNEE_MEL))
