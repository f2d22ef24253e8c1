"""A random Realtime model of a few thousand parameters, its layout, and a causal audio tokenizer."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from moss.config.generation import GenerationConfig, SamplerConfig
from moss.config.model import RealtimeModelConfig, TextTokenizerConfig, TextTokenizerKind
from moss.data.text_tokenizer import build_text_tokenizer
from moss.model.build import build_model
from moss.model.realtime import RealtimeModel
from moss.sequence.layout import build_layout
from moss.sequence.layout_realtime import RealtimeLayout
from moss.spec import TokenizerSpec

TEXT = "Well, press the star key (twice), or don't: then wait for the tone\u2014and say your name. It costs 3.50 today!"

SAMPLED = GenerationConfig(
    audio=SamplerConfig(temperature=1.0, top_k=12, top_p=0.95, repetition_penalty=1.1, penalty_window=5),
    max_frames=40,
)


@cache
def toy_config() -> RealtimeModelConfig:
    """Sizes that run in a millisecond; ids are free in the compact text tokenizer."""
    special = build_text_tokenizer(TextTokenizerConfig(kind=TextTokenizerKind.compact)).special_tokens
    return RealtimeModelConfig(
        num_codebooks=3,
        codebook_size=16,
        vocab_size=1024,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        intermediate_size=48,
        max_positions=400,
        initializer_range=0.3,
        pad_token_id=special.pad,
        im_start_token_id=special.im_start,
        im_end_token_id=special.im_end,
        reference_audio_pad_token_id=special.user_slot,
        text_pad_token_id=1015,
        text_lead=5,
        depth_num_layers=1,
        depth_num_heads=2,
        depth_num_kv_heads=1,
        depth_head_dim=8,
        depth_intermediate_size=32,
    )


@cache
def toy_model(talkative: bool = False) -> RealtimeModel:
    """Random weights; a talkative one seldom ends its turns, and never when greedy."""
    torch.manual_seed(3)
    model = build_model(toy_config()).eval()
    assert isinstance(model, RealtimeModel)
    if talkative:
        with torch.no_grad():
            model.head_weight(1)[toy_config().eos_code] = 0
    return model


@cache
def toy_layout() -> RealtimeLayout:
    """With the compact text tokenizer."""
    tokenizer = build_text_tokenizer(TextTokenizerConfig(kind=TextTokenizerKind.compact))
    layout = build_layout(toy_config(), tokenizer.encode)
    assert isinstance(layout, RealtimeLayout)
    return layout


def toy_codes(frames: int, seed: int = 0) -> Tensor:
    """Made-up codes (frames, codebooks)."""
    config = toy_config()
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, config.codebook_size, (frames, config.num_codebooks), generator=random)


class CausalTokenizer:
    """A frame's samples depend on it and on the frame before, as in a causal decoder."""

    spec = TokenizerSpec(sampling_rate_hz=800, samples_per_frame=64, num_codebooks=3, codebook_size=16)
    fingerprint = "0123456789abcdef"

    def __init__(self) -> None:
        self.frames_decoded = 0

    def encode(self, waves: Sequence[Tensor], num_codebooks: int | None = None) -> list[Tensor]:
        return [torch.full((self.spec.num_frames(len(wave)), num_codebooks or 3), 3) for wave in waves]

    def decode(self, codes: Sequence[Tensor], num_samples: Sequence[int] | None = None) -> list[Tensor]:
        waves = []
        for item in codes:
            self.frames_decoded += len(item)
            level = item.float().sum(1) / 100
            before = torch.cat([torch.zeros(1), level[:-1]])
            ramp = torch.linspace(0, 1, self.spec.samples_per_frame)
            waves.append((before[:, None] * (1 - ramp) + level[:, None] * ramp).flatten())
        return waves
