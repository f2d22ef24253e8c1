"""Reconstruction loss of the audio tokenizer: log-mel distance at seven time scales.

The quantizer's two losses are computed where the codes are chosen (`quantizer.ResidualQuantizer`).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEL_WINDOWS = (32, 64, 128, 256, 512, 1024, 2048)
MEL_BINS = (5, 10, 20, 40, 80, 160, 320)
LARGEST_MATRIX_WINDOW = 64
"""Up to this window a product with the Fourier matrix is faster than many small FFTs on a CPU."""


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
        normalised_stft: bool = True,
    ) -> None:
        """Precompute windows and filters.

        Args:
            sampling_rate_hz: Rate of the waveforms.
            windows: Window lengths in samples.
            bins: Mel bins of each window.
            floor: Magnitudes below it count as silence.
            normalised_stft: Divide spectra by the square root of the window length, as the report says.
        """
        super().__init__()
        assert len(windows) == len(bins)
        self.windows = windows
        self.floor = floor
        for window, count in zip(windows, bins, strict=True):
            gain = window**-0.5 if normalised_stft else 1.0
            self.register_buffer(f"taper_{window}", torch.hann_window(window) * gain, persistent=False)
            filters = slaney_mel_filters(sampling_rate_hz, window, count)
            self.register_buffer(f"filters_{window}", filters.T.contiguous(), persistent=False)
            if window <= LARGEST_MATRIX_WINDOW:
                self.register_buffer(f"fourier_{window}", _fourier_matrix(window), persistent=False)

    def log_mel(self, wave_BN: Tensor, window: int) -> Tensor:
        """log10 mel magnitudes (B, positions, bins) of waveforms (B, N); positions are a quarter window apart."""
        hop = window // 4
        mode = "reflect" if wave_BN.shape[-1] > window // 2 else "constant"
        padded = F.pad(wave_BN[:, None], (window // 2, window // 2), mode=mode)[:, 0]
        count = (padded.shape[1] - window) // hop + 1
        quarters = padded[:, : (count + 3) * hop].unflatten(1, (-1, hop))
        tapered = torch.cat([quarters[:, i : i + count] for i in range(4)], -1) * self.get_buffer(f"taper_{window}")
        if window <= LARGEST_MATRIX_WINDOW:
            power = (tapered @ self.get_buffer(f"fourier_{window}")).square().unflatten(-1, (2, -1)).sum(-2)
        else:
            power = torch.view_as_real(torch.fft.rfft(tapered)).square().sum(-1)
        # The square root has no gradient at exactly zero, which silence reaches.
        magnitude = (power + 1e-14).sqrt()
        return (magnitude @ self.get_buffer(f"filters_{window}")).clamp(min=self.floor).log10()

    def forward(self, generated_BN: Tensor, target_BN: Tensor) -> Tensor:
        """Scalar distance of two waveform batches (B, N)."""
        total = generated_BN.new_zeros(())
        for window in self.windows:
            with torch.no_grad():
                target = self.log_mel(target_BN, window)
            total = total + (self.log_mel(generated_BN, window) - target).abs().mean()
        return total


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


def _fourier_matrix(window: int) -> Tensor:
    """Cosines, then sines, of the bands 0 to window / 2: (window, 2 * (window / 2 + 1))."""
    phases = torch.arange(window)[:, None] * torch.arange(window // 2 + 1)[None, :] % window
    angles = phases.double() * (2 * math.pi / window)
    return torch.cat((angles.cos(), -angles.sin()), 1).float()


_HZ_PER_MEL = 200 / 3
_KNEE_HZ = 1000.0
_KNEE_MEL = _KNEE_HZ / _HZ_PER_MEL
_LOG_STEP = math.log(6.4) / 27


def _hz_to_mel(hz: float) -> float:
    return hz / _HZ_PER_MEL if hz < _KNEE_HZ else _KNEE_MEL + math.log(hz / _KNEE_HZ) / _LOG_STEP


def _mel_to_hz(mel: float) -> float:
    return mel * _HZ_PER_MEL if mel < _KNEE_MEL else _KNEE_HZ * math.exp(_LOG_STEP * (mel - _KNEE_MEL))
