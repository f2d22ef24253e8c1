"""Counted work: the matrices that the model really has, heads only where there is a label."""

import pytest
from torch import nn

from moss.model.build import build_model
from moss.model.flops import backbone_parameters, delay_training_flops
from tests.model.test_delay import CONFIG


def test_backbone_parameters_are_the_linear_layers_of_the_model() -> None:
    layers = build_model(CONFIG).language_model.layers
    linear = sum(m.weight.numel() for m in layers.modules() if isinstance(m, nn.Linear))
    assert backbone_parameters(CONFIG) == linear


def test_prompt_earns_no_head_and_attention_is_per_document() -> None:
    bare = delay_training_flops(CONFIG, [10, 6], [0, 0, 0, 0])
    one_label = delay_training_flops(CONFIG, [10, 6], [1, 0, 0, 2])
    assert one_label - bare == pytest.approx(6 * 32 * (40 + 2 * 10))
    assert delay_training_flops(CONFIG, [16], [0] * 4) - bare == pytest.approx(6 * 2 * 4 * 16 * (16**2 - 10**2 - 6**2))
