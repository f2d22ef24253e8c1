"""Counted work: the matrices that the model really has, heads and depth positions only where there is a label."""

from dataclasses import replace

import pytest
from torch import nn

from moss.config.model import LocalModelConfig, LocalV15ModelConfig, ModelConfig, RealtimeModelConfig, StopHead
from moss.model.build import build_model
from moss.model.flops import backbone_parameters, depth_parameters, training_flops
from tests.training.small import CONFIGS


def linear_parameters(module: nn.Module) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


@pytest.mark.parametrize("architecture", CONFIGS)
def test_block_parameters_are_the_linear_layers_of_the_model(architecture: str) -> None:
    config = CONFIGS[architecture]
    model = build_model(config)
    assert backbone_parameters(config) == linear_parameters(model.backbone.layers)
    depth = 0
    for name, module in model.named_modules():
        if name in ("local_transformer", "speech_embedding_to_local_mlp", "local_to_speech_embedding_mlps.0"):
            depth += linear_parameters(module)
        elif name == "local_transformer.local_lm_heads":
            depth -= linear_parameters(module)
    assert depth_parameters(config) == depth


@pytest.mark.parametrize("architecture", CONFIGS)
def test_prompt_earns_no_head_and_attention_is_per_document(architecture: str) -> None:
    config = CONFIGS[architecture]
    nothing = [0] * (1 + config.num_codebooks)
    bare = training_flops(config, [10, 6], nothing)
    squares = 16**2 - 10**2 - 6**2
    whole = training_flops(config, [16], nothing)
    assert whole - bare == pytest.approx(6 * config.num_layers * config.num_heads * config.head_dim * squares)


@pytest.mark.parametrize(
    ("architecture", "depth_positions", "head_rows"),
    [("delay", 0, 40 + 4 * 10), ("local", 1 + 4, 40 + 4 * 10), ("local_v15", 3, 2 + 4 * 10), ("realtime", 4, 4 * 13)],
)
def test_labels_earn_their_heads_and_depth_positions(architecture: str, depth_positions: int, head_rows: int) -> None:
    config = CONFIGS[architecture]
    text = 0 if architecture == "realtime" else 1
    bare = training_flops(config, [10], [0, 0, 0, 0])
    labelled = training_flops(config, [10], [text, 2, 1, 1])
    assert labelled - bare == pytest.approx(
        6 * (depth_positions * depth_parameters(config) + config.hidden_size * head_rows)
    )
    # Every third code only: heads and depth positions of the codes alone shrink.
    third = training_flops(config, [10], [text, 6, 3, 3], depth_frac=1 / 3)
    unshared = training_flops(config, [10], [text, 6, 3, 3])
    assert third == pytest.approx(unshared if architecture == "delay" else labelled)
    frozen = training_flops(config, [10], [text, 2, 1, 1], frozen=True)
    attention = 6 * config.num_layers * config.num_heads * config.head_dim * 100
    assert frozen - attention == pytest.approx((labelled - attention) * 2 / 3)


def test_a_full_vocabulary_stop_head_earns_its_rows() -> None:
    small = CONFIGS["local_v15"]
    assert isinstance(small, LocalV15ModelConfig)
    full = replace(small, stop_head=StopHead.full_vocab)
    difference = training_flops(full, [5], [1, 0, 0, 0]) - training_flops(small, [5], [1, 0, 0, 0])
    assert difference == 6 * small.hidden_size * (small.vocab_size - 2)


def published(kind: type[ModelConfig], **changes: object) -> ModelConfig:
    return kind(**changes)  # type: ignore[arg-type]


def test_published_sizes() -> None:
    large = published(
        ModelConfig.variants["delay"],
        vocab_size=155_648,
        hidden_size=4096,
        num_layers=36,
        num_heads=32,
        intermediate_size=12_288,
    )
    assert backbone_parameters(large) == pytest.approx(6.946e9, rel=1e-3)
    # 8B at 1,024 positions, a label at each: 47.2 GFLOP a position.
    assert training_flops(large, [1024], [1024] * 33) / 1024 == pytest.approx(47.2e9, rel=2e-3)
    local = published(LocalModelConfig)
    assert backbone_parameters(local) == pytest.approx(1.409e9, rel=1e-3)
    assert depth_parameters(local) == pytest.approx(202.9e6 + 11.5e6 + 10.5e6, rel=1e-3)
    # A labelled frame of Local: 44.5 GFLOP of depth, the text position included.
    depth = training_flops(local, [1], [1] * 33) - training_flops(local, [1], [0] * 33)
    heads = 6 * 2048 * (151_936 + 32 * 1024)
    assert depth - heads == pytest.approx(44.5e9, rel=2e-3)
    assert depth_parameters(published(RealtimeModelConfig)) == pytest.approx(201.3e6, rel=1e-3)
