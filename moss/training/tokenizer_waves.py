"""Waveforms between three views: as recorded, as the network's one stream, and as losses compare them."""

from torch import Tensor


def interleaved(waves: Tensor) -> Tensor:
    """(B, N) as it is; stereo (B, 2, N) as the stream (B, 2 * N) of left, right, left, right, ..."""
    return waves if waves.dim() == 2 else waves.transpose(1, 2).flatten(1)


def separated(stream_BN: Tensor, audio_channels: int) -> Tensor:
    """The inverse of `interleaved`."""
    return stream_BN if audio_channels == 1 else stream_BN.unflatten(1, (-1, audio_channels)).transpose(1, 2)


def each_channel(waves: Tensor) -> Tensor:
    """Every audio channel as an item of its own: (B, N), or (B * 2, N)."""
    return waves.flatten(0, -2)
