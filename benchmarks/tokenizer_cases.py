"""What both sides of the tokenizer benchmark get: one geometry, one set of random weights, the same audio."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from moss.config.schema import build
from moss.config.tokenizer import BatchPolicy, CatConfig, QuantizerConfig
from moss.errors import ConfigError
from moss.tokenizer.cat import CatModel, CatTokenizer

HEAD_SIZE = 64
LAYER_SCALE = 0.3
"""Large enough that every layer matters to the codes; a fresh checkpoint's 0.01 would hide a wrong window."""
SIGNAL_BLOCK_S = 10.0
FRAME_S = 0.08


def scaled_config(width_divisor: int, depth_divisor: int, policy: BatchPolicy = BatchPolicy.single) -> CatConfig:
    """The published 24 kHz geometry with widths and depths divided: head size, windows and codebooks stay.

    Raises:
        ConfigError: A width does not divide into heads, or a depth into layers.
    """
    published = CatConfig()
    narrow, wide = 768 // width_divisor, 1280 // width_divisor
    if 768 % width_divisor or 1280 % width_divisor or narrow % HEAD_SIZE or wide % HEAD_SIZE:
        raise ConfigError(f"--width-divisor: expected 1, 2 or 4, got {width_divisor}")
    if 12 % depth_divisor or 32 % depth_divisor:
        raise ConfigError(f"--depth-divisor: expected 1, 2 or 4, got {depth_divisor}")
    out = [384 // width_divisor, 384 // width_divisor, 640 // width_divisor, narrow]
    stages = [(240, narrow, 12), (2 * out[0], narrow, 12), (2 * out[1], narrow, 12), (2 * out[2], wide, 32)]
    encoder: list[dict[str, Any]] = []
    for (inputs, hidden, layers), outputs, patch in zip(stages, out, (240, 2, 2, 2), strict=True):
        encoder += [{"kind": "patch", "patch_size": patch}]
        encoder += [_stage(inputs, outputs, hidden, layers // depth_divisor)]
    quantizer = {
        "input_size": narrow,
        "residual_size": published.quantizer.residual_size // width_divisor,
        "output_size": narrow,
    }
    return build(CatConfig, {"kind": "cat", "encoder": encoder, "quantizer": quantizer, "batch_policy": policy.value})


def quantizer_config() -> CatConfig:
    """The published quantizer at full size, behind as little network as will go."""
    sizes = QuantizerConfig()
    encoder = [{"kind": "patch", "patch_size": 240}, _stage(240, sizes.input_size // 8, HEAD_SIZE, 1)]
    return build(CatConfig, {"kind": "cat", "encoder": [*encoder, {"kind": "patch", "patch_size": 8}]})


def random_tokenizer(config: CatConfig) -> CatTokenizer:
    """The same weights for the same geometry, in every process."""
    torch.manual_seed(0)
    return CatTokenizer(CatModel(config))


def signal_blocks(sampling_rate_hz: int, seed: int = 0) -> Iterator[Tensor]:
    """Endless blocks (samples,) of SIGNAL_BLOCK_S: gliding harmonics with syllables and pauses, and a little noise."""
    samples = round(SIGNAL_BLOCK_S * sampling_rate_hz)
    seconds = torch.arange(samples, dtype=torch.float64) / sampling_rate_hz
    for block in itertools.count():
        random = torch.Generator().manual_seed(seed * 1_000_003 + block)
        low, depth, rate, beat = torch.rand(4, generator=random, dtype=torch.float64).tolist()
        pitch_hz = 90 + 120 * low + 30 * depth * torch.sin(2 * math.pi * (0.3 + rate) * seconds)
        phase = 2 * math.pi * pitch_hz.cumsum(0) / sampling_rate_hz
        voice = sum(torch.sin(harmonic * phase) / harmonic for harmonic in range(1, 13))
        syllables = torch.sin(2 * math.pi * (2 + 3 * beat) * seconds).clamp(min=0)
        noise = 0.01 * torch.randn(samples, generator=random)
        yield (0.2 * voice * syllables).float() + noise


def signal(seconds: float, sampling_rate_hz: int, seed: int = 0) -> Tensor:
    """The first `seconds` of `signal_blocks`, shape (samples,)."""
    samples = round(seconds * sampling_rate_hz)
    count = math.ceil(samples / round(SIGNAL_BLOCK_S * sampling_rate_hz))
    return torch.cat(list(itertools.islice(signal_blocks(sampling_rate_hz, seed), count)))[:samples]


def encode_stream(tokenizer: CatTokenizer, wave: Tensor) -> Tensor:
    """Codes (frames, codebooks) of a waveform that comes in frame by frame."""
    stream = tokenizer.encoder_stream()
    return torch.cat([stream.push(piece) for piece in wave.split(tokenizer.spec.samples_per_frame)])


def decode_stream(tokenizer: CatTokenizer, codes: Tensor) -> Tensor:
    """Samples (n,) of codes that come in frame by frame."""
    stream = tokenizer.decoder_stream()
    return torch.cat([stream.push(row) for row in codes.split(1)])


def _stage(inputs: int, outputs: int, hidden: int, layers: int) -> dict[str, Any]:
    return {
        "kind": "transformer",
        "input_size": inputs,
        "output_size": outputs,
        "hidden_size": hidden,
        "num_layers": layers,
        "num_heads": hidden // HEAD_SIZE,
        "intermediate_size": 4 * hidden,
        "layer_scale_init": LAYER_SCALE,
    }
