"""Discriminators of the adversarial stage: the wave folded by periods, and its complex spectrum in bands.

Source: the report (arXiv 2603.18090) names multi-period and complex-STFT discriminators without their sizes; shapes,
strides and input scaling are descript-audio-codec's. Deviations: a wave whose length already is a multiple of the
period is not padded further, and a peak below `PEAK_FLOOR` is not scaled up as if it were speech.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from moss.config.tokenizer_training import DiscriminatorConfig
from moss.errors import ConfigError, DataError

LEAKY_SLOPE = 0.1
PEAK = 0.8
PEAK_FLOOR = 1e-3
"""-60 dBFS. Without it the gradient of a nearly silent wave is multiplied without bound."""


class Discriminators(nn.Module):
    """All discriminators on one wave: periods first, then Fourier windows.

    Each wave of a batch is judged by itself, so that real and generated waves may share one forward pass.

    Args:
        config: Periods, windows, widths.
        sampling_rate_hz: Rate of the waves; the bands of the spectrum are shares of half of it.

    Raises:
        ConfigError: A window is too short for a hop of a quarter, or a band of it holds no Fourier bin.
    """

    def __init__(self, config: DiscriminatorConfig, sampling_rate_hz: int) -> None:
        super().__init__()
        _check_bands(config, sampling_rate_hz)
        members: list[nn.Module] = [PeriodDiscriminator(period, config.period_channels) for period in config.periods]
        members += [
            StftDiscriminator(window, config.stft_bands, config.stft_channels) for window in config.stft_windows
        ]
        self.members = nn.ModuleList(members)

    def forward(self, wave_BN: Tensor) -> list[list[Tensor]]:
        """Judge waves (B, N), of any length from one sample.

        Returns:
            Per discriminator its feature maps, the last of which is the score: 1 is real, 0 is generated.

        Raises:
            DataError: The waves have no samples.
        """
        if wave_BN.shape[-1] == 0:
            raise DataError(
                f"discriminators: got waves of 0 samples (shape {tuple(wave_BN.shape)}), expected at least 1; "
                "leave empty segments out of the batch"
            )
        scaled_BN = centre_and_scale(wave_BN)
        return [member(scaled_BN) for member in self.members]


class PeriodDiscriminator(nn.Module):
    """Judges every `period`-th sample: convolutions along time that never mix phases of the period."""

    def __init__(self, period: int, channels: list[int]) -> None:
        """One convolution per entry of `channels`, all but the last of stride 3, and the score."""
        super().__init__()
        self.period = period
        convolutions = []
        for i, (inputs, outputs) in enumerate(itertools.pairwise([1, *channels])):
            stride = 1 if i == len(channels) - 1 else 3
            convolutions.append(weight_norm(nn.Conv1d(inputs, outputs, 5, stride, padding=2)))
        self.convolutions = nn.ModuleList(convolutions)
        self.score = weight_norm(nn.Conv1d(channels[-1], 1, 3, padding=1))

    def forward(self, wave_BN: Tensor) -> list[Tensor]:
        """Feature maps (B * period, channels, steps), the last the score with one channel."""
        padded_BN = _pad(wave_BN, 0, -wave_BN.shape[1] % self.period)
        # Phases are items of the batch: the same function as a 2-D convolution with a kernel of width 1.
        x = padded_BN.unflatten(1, (-1, self.period)).transpose(1, 2).reshape(-1, 1, padded_BN.shape[1] // self.period)
        maps = []
        for convolution in self.convolutions:
            x = F.leaky_relu(convolution(x), LEAKY_SLOPE)
            maps.append(x)
        return [*maps, self.score(x)]


class StftDiscriminator(nn.Module):
    """Judges real and imaginary part of the spectrum, each frequency band with convolutions of its own."""

    def __init__(self, window: int, bands: list[float], channels: int) -> None:
        """`bands` are edges as shares of half the sampling rate; the hop is a quarter of the `window`."""
        super().__init__()
        self.window = window
        self.edges = band_edges(window, bands)
        self.bands = nn.ModuleList(_band_convolutions(channels) for _ in bands[1:])
        self.score = weight_norm(nn.Conv2d(channels, 1, (3, 3), padding=(1, 1)))
        self.register_buffer("taper", torch.hann_window(window), persistent=False)

    def forward(self, wave_BN: Tensor) -> list[Tensor]:
        """Feature maps (B, channels, positions, bins) of band after band, then the score over all of them."""
        padded_BN = _pad(wave_BN, self.window // 2, self.window // 2)
        spectrum_BFT = torch.stft(
            padded_BN,
            self.window,
            self.window // 4,
            window=self.get_buffer("taper"),
            center=False,
            return_complex=True,
        )
        parts_B2TF = torch.view_as_real(spectrum_BFT).permute(0, 3, 2, 1)
        maps, ends = [], []
        for (low, high), convolutions in zip(itertools.pairwise(self.edges), self.bands, strict=True):
            x = parts_B2TF[..., low:high]
            assert isinstance(convolutions, nn.ModuleList)
            for convolution in convolutions:
                x = F.leaky_relu(convolution(x), LEAKY_SLOPE)
                maps.append(x)
            ends.append(x)
        return [*maps, self.score(torch.cat(ends, -1))]


def centre_and_scale(wave_BN: Tensor) -> Tensor:
    """Waves (B, N) without their mean, their peak at `PEAK`; below `PEAK_FLOOR` they stay quieter in proportion."""
    wave_BN = wave_BN.float()
    centred_BN = wave_BN - wave_BN.mean(-1, keepdim=True)
    peak_B1 = centred_BN.abs().amax(-1, keepdim=True)
    return centred_BN * (PEAK / peak_B1.clamp(min=PEAK_FLOOR))


def band_edges(window: int, bands: list[float]) -> list[int]:
    """First Fourier bin of each band of `window`, and the number of bins as the last entry."""
    return [int(share * (window // 2 + 1)) for share in bands]


def _band_convolutions(channels: int) -> nn.ModuleList:
    """Kernels (positions, bins): one at full, three at halving, one more at the remaining frequency resolution."""
    halving = [weight_norm(nn.Conv2d(channels, channels, (3, 9), (1, 2), padding=(1, 4))) for _ in range(3)]
    return nn.ModuleList(
        [
            weight_norm(nn.Conv2d(2, channels, (3, 9), padding=(1, 4))),
            *halving,
            weight_norm(nn.Conv2d(channels, channels, (3, 3), padding=(1, 1))),
        ]
    )


def _pad(wave_BN: Tensor, left: int, right: int) -> Tensor:
    # A wave cannot be mirrored further than it is long.
    mode = "reflect" if max(left, right) < wave_BN.shape[1] else "constant"
    return F.pad(wave_BN[:, None], (left, right), mode=mode)[:, 0]


def _check_bands(config: DiscriminatorConfig, sampling_rate_hz: int) -> None:
    for window in config.stft_windows:
        if window < 4:
            raise ConfigError(
                f"discriminator.stft_windows: expected at least 4 samples (the hop is a quarter), got {window}"
            )
        edges = band_edges(window, config.stft_bands)
        for i, (low, high) in enumerate(itertools.pairwise(edges)):
            if low == high:
                band = [share * sampling_rate_hz / 2 for share in config.stft_bands[i : i + 2]]
                raise ConfigError(
                    f"discriminator.stft_bands: the band from {band[0]:.0f} to {band[1]:.0f} Hz holds no bin of window "
                    f"{window}, whose bins are {sampling_rate_hz / window:.0f} Hz apart; widen the band, or drop the "
                    "window from discriminator.stft_windows"
                )
