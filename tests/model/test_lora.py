"""Adapters: only they are trained, and merged they are an ordinary model with the same outputs."""

import sys

import pytest
import torch
from torch import Tensor, nn

from moss.config.train import LoraConfig
from moss.errors import CheckpointError, ConfigError
from moss.model.build import build_model
from moss.model.interface import Generator
from moss.model.lora import apply_lora, has_adapters, merge_state
from tests.training.small import ARCHITECTURES, CONFIGS

LORA = LoraConfig(rank=3, alpha=12.0)


def adapted(architecture: str, config: LoraConfig = LORA) -> Generator:
    """A model whose adapters do something."""
    torch.manual_seed(1)
    model = build_model(CONFIGS[architecture])
    apply_lora(model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def states(model: Generator) -> Tensor:
    """What the heads see of a fixed batch, through backbone and depth transformer."""
    config = model.config
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config.codebook_size, (1, 9, model.num_channels), generator=random)
    labels = torch.randint(0, config.codebook_size, (1, 9, model.num_channels), generator=random)
    labels[..., 0] = 36 if "gen_slot" in config.special_tokens.used else -100  # type: ignore[attr-defined]
    with torch.no_grad():
        return model.supervised(model(tokens).hidden, labels).states


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_weights_have_the_outputs_of_the_adapted_model(architecture: str) -> None:
    model = adapted(architecture)
    plain = build_model(CONFIGS[architecture])
    assert set(merge_state(model.state_dict())) == set(plain.state_dict())
    plain.load_state_dict(merge_state(model.state_dict()))
    plain.eval()
    assert (states(plain) - states(model)).abs().max() <= 1e-5
    # The adapters were not idle: without them the outputs are others.
    base = {name: tensor for name, tensor in model.state_dict().items() if "lora_B" not in name}
    silent = {name: torch.zeros_like(t) for name, t in model.state_dict().items() if "lora_B" in name}
    plain.load_state_dict(merge_state(base | silent))
    assert (states(plain) - states(model)).abs().max() > 1e-2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapters_sit_on_every_projection_of_the_blocks_and_alone_are_trained(architecture: str) -> None:
    torch.manual_seed(1)
    model = build_model(CONFIGS[architecture])
    before = states(model.eval())
    projections = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (".layers." in name or ".h." in name)
    }
    apply_lora(model, LORA)
    assert torch.equal(states(model), before)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"{name}.lora_{half}.default.weight" for name in projections for half in "AB"}


def test_depth_adapters_are_used_in_training() -> None:
    for architecture in ARCHITECTURES[1:]:
        model = adapted(architecture)
        before = states(model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.startswith("local_transformer.") and "lora_B" in name:
                    parameter.zero_()
        assert not torch.allclose(states(model), before, atol=1e-3), architecture


@pytest.mark.parametrize(("target", "word"), [("attention", "attn"), ("mlp", "mlp")])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_targets(architecture: str, target: str, word: str) -> None:
    model = adapted(architecture, LoraConfig(rank=2, targets=[target]))
    names = [name for name, _ in model.named_parameters() if "lora_A" in name]
    assert names
    assert all(word in name for name in names)


def test_what_is_trained_in_full_beside_the_adapters() -> None:
    model = build_model(CONFIGS["local"])
    # The unused text table stays frozen although the pattern matches it.
    apply_lora(model, LoraConfig(rank=2, train=["model.*embed*", "layer_norm_before_lm_heads.*"]))
    full = {n for n, parameter in model.named_parameters() if parameter.requires_grad and "lora_" not in n}
    assert full == {f"model.embedding_list.{k}.weight" for k in range(4)} | {
        f"layer_norm_before_lm_heads.{k}.weight" for k in range(4)
    }


def test_rank_0_changes_nothing() -> None:
    model = build_model(CONFIGS["delay"])
    names = list(model.state_dict())
    apply_lora(model, LoraConfig())
    assert list(model.state_dict()) == names
    assert not has_adapters(model.state_dict())
    assert merge_state(model.state_dict()).keys() == model.state_dict().keys()


def test_half_an_adapter() -> None:
    state = adapted("delay").state_dict()
    name = "language_model.layers.0.self_attn.q_proj"
    del state[f"{name}.lora_B.default.weight"]
    del state["language_model.layers.1.mlp.up_proj.base_layer.weight"]
    with pytest.raises(CheckpointError) as caught:
        merge_state(state)
    assert str(caught.value).split("\n  ") == [
        "adapters are incomplete, missing:",
        f"{name}.lora_B.default.weight",
        "language_model.layers.1.mlp.up_proj.base_layer.weight",
    ]


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"lora\.rank=3 needs the package peft: pip install 'moss\[lora\]'"):
        apply_lora(build_model(CONFIGS["delay"]), LORA)
