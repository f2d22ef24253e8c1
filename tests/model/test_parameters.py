"""Patterns of parameter names: dots, ties, and what a misspelt one is told."""

import pytest
from torch import nn

from moss.errors import ConfigError
from moss.model.parameters import parameters_matching, published_name


def network() -> nn.Module:
    model = nn.ModuleDict({"table": nn.Embedding(3, 2), "head": nn.Linear(2, 3), "layers": nn.ModuleList()})
    model["layers"].append(nn.Linear(2, 2))
    model["layers"].append(nn.Linear(2, 2))
    model["head"].weight = model["table"].weight
    return model


def test_a_star_matches_dots_and_order_is_the_models() -> None:
    model = network()
    assert list(parameters_matching(model, "layers.*", "x")) == [
        "layers.0.weight",
        "layers.0.bias",
        "layers.1.weight",
        "layers.1.bias",
    ]
    assert list(parameters_matching(model, "layers.[1]*bias", "x")) == ["layers.1.bias"]
    # Case counts, on every system.
    with pytest.raises(ConfigError):
        parameters_matching(model, "LAYERS.*", "x")


def test_a_tied_parameter_has_two_names() -> None:
    model = network()
    assert parameters_matching(model, "head.weight", "x") == {"table.weight": model["table"].weight}


def test_near_names_are_listed() -> None:
    message = r"^optim\.freeze: 'layer\.0\.wait' matches no parameter; near names: layers\.0\.weight, "
    with pytest.raises(ConfigError, match=message):
        parameters_matching(network(), "layer.0.wait", "optim.freeze")


def test_adapters_do_not_change_a_weights_name() -> None:
    assert published_name("a.q_proj.base_layer.weight") == "a.q_proj.weight"
    assert published_name("a.q_proj.lora_A.default.weight") == "a.q_proj.lora_A.default.weight"
