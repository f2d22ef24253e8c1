"""One small generator of each architecture, and token rows for it."""

from typing import Any

import torch
from torch import Tensor, nn

from moss.config.model import (
    DelayModelConfig,
    LocalModelConfig,
    LocalV15ModelConfig,
    ModelConfig,
    RealtimeModelConfig,
    StopHead,
)
from moss.model.build import build_model
from moss.model.interface import Generator
from moss.spec import IGNORE_LABEL

GEOMETRY: dict[str, Any] = {
    "num_codebooks": 3,
    "codebook_size": 10,
    "vocab_size": 40,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "max_positions": 64,
    "initializer_range": 0.2,
    "pad_token_id": 30,
    "im_start_token_id": 31,
    "im_end_token_id": 32,
}
AUDIO_IDS: dict[str, Any] = {
    "audio_start_token_id": 33,
    "audio_end_token_id": 34,
    "audio_user_slot_token_id": 35,
}
DELAY_IDS: dict[str, Any] = {
    **AUDIO_IDS,
    "audio_assistant_gen_slot_token_id": 36,
    "audio_assistant_delay_slot_token_id": 37,
}
CONFIGS: dict[str, ModelConfig] = {
    "delay": DelayModelConfig(**GEOMETRY, **DELAY_IDS),
    "local": LocalModelConfig(
        **GEOMETRY,
        **DELAY_IDS,
        depth_hidden_size=24,
        depth_num_layers=2,
        depth_intermediate_size=40,
        depth_mlp_size=20,
    ),
    "local_v15": LocalV15ModelConfig(
        **GEOMETRY,
        **AUDIO_IDS,
        audio_assistant_slot_token_id=36,
        depth_num_layers=2,
        depth_num_heads=4,
        depth_intermediate_size=48,
    ),
    "realtime": RealtimeModelConfig(
        **GEOMETRY,
        reference_audio_pad_token_id=35,
        text_pad_token_id=38,
        depth_num_layers=2,
        depth_num_heads=4,
        depth_num_kv_heads=2,
        depth_head_dim=8,
        depth_intermediate_size=40,
    ),
}
DEPTH_NAMES = ["local", "local_v15", "realtime"]
FULL_VOCAB = LocalV15ModelConfig(
    **GEOMETRY,
    **AUDIO_IDS,
    audio_assistant_slot_token_id=36,
    depth_num_layers=1,
    depth_num_heads=4,
    depth_intermediate_size=48,
    stop_head=StopHead.full_vocab,
)


def toy_model(config: ModelConfig) -> Generator:
    """In eval mode, with norms and padding rows that are not what initialisation leaves them at."""
    torch.manual_seed(0)
    model = build_model(config).eval()
    with torch.no_grad():
        for module in model.modules():
            if "norm" in type(module).__name__.lower():
                for parameter in module.parameters():
                    parameter.add_(0.3 * torch.randn_like(parameter))
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx].normal_(std=0.2)
    return model


def some_tokens(length: int, num_codebooks: int = 3) -> Tensor:
    """Rows (1, length, channels), pad codes among them."""
    random = torch.Generator().manual_seed(length)
    text = torch.randint(0, 30, (1, length, 1), generator=random)
    return torch.cat([text, torch.randint(0, 11, (1, length, num_codebooks), generator=random)], dim=2)


def some_labels(length: int, num_codebooks: int = 3) -> Tensor:
    """Targets (1, length, channels): a prompt without, whole frames, a row with text alone, one with one code alone.

    Text targets are 34 and 36: "stop" and "go on" of the architectures that ask.
    """
    assert length >= 5
    random = torch.Generator().manual_seed(1000 + length)
    labels = torch.randint(0, 10, (1, length, 1 + num_codebooks), generator=random)
    labels[..., 0] = 36
    labels[:, :2] = IGNORE_LABEL
    labels[:, -1, 0] = 34
    labels[:, -1, 1:] = IGNORE_LABEL
    labels[:, -2, 0] = IGNORE_LABEL
    labels[:, -2, 2:] = IGNORE_LABEL
    return labels
