"""The schedule's values, what weight decay touches, what is frozen, and who learns at another rate."""

import pytest
import torch
from torch import nn

from moss.config.compose import load_config
from moss.config.schema import build
from moss.config.tokenizer import CatConfig
from moss.config.train import LoraConfig, OptimConfig, TrainConfig
from moss.errors import ConfigError
from moss.model.build import build_model
from moss.model.lora import apply_lora
from moss.tokenizer.cat import CatModel
from moss.training.lit_base import LitRun
from moss.training.optim import base_rate, build_optimizer, build_scheduler, freeze_parameters, lr_factor
from tests.tokenizer.conftest import small_settings
from tests.training.small import ARCHITECTURES, CONFIGS


@pytest.mark.parametrize(("step", "factor"), [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (35, 0.6), (60, 0.2), (70, 0.2)])
def test_warm_up_then_cosine(step: int, factor: float) -> None:
    assert lr_factor(step, warmup_steps=10, max_steps=60, min_lr_frac=0.2) == pytest.approx(factor)


def test_no_warm_up_starts_at_the_peak_and_one_step_runs_are_possible() -> None:
    assert lr_factor(0, 0, 100, 0.1) == 1.0
    assert lr_factor(0, 1, 1, 0.1) == 1.0
    assert lr_factor(1, 1, 1, 0.1) == 1.0


def test_the_first_update_uses_step_0_in_every_group() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=4, lr_scales={"bias": 0.5})
    optimizer = build_optimizer(nn.Linear(2, 2), config)
    scheduler = build_scheduler(optimizer, config, 10)
    rates = []
    for _ in range(5):
        rates.append([group["lr"] for group in optimizer.param_groups])
        assert base_rate(optimizer) == rates[-1][0]
        optimizer.step()
        scheduler.step()
    assert rates == [[0.25, 0.125], [0.5, 0.25], [0.75, 0.375], [1.0, 0.5], [1.0, 0.5]]


def names_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [{names[id(p)] for p in group["params"]} for group in optimizer.param_groups]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_matrices_decay_and_unused_tables_are_left_out(architecture: str) -> None:
    model = build_model(CONFIGS[architecture])
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert bool(frozen) == (architecture in ("local", "realtime"))
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.3))
    decayed, kept = names_of(model, optimizer)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert decayed | kept == {name for name, _ in model.named_parameters()} - frozen
    assert all(".emb" in f".{name}" or "norm" in name or "ln_" in name or "bias" in name or "audio_emb" in name
               for name in kept)  # fmt: skip
    assert all("proj" in name or "head" in name or "attn" in name or "mlp" in name for name in decayed)
    assert isinstance(optimizer, torch.optim.AdamW)


def test_gains_of_weight_norm_do_not_decay() -> None:
    model = CatModel(build(CatConfig, small_settings()))
    decayed, kept = names_of(model, build_optimizer(model, OptimConfig()))
    gains = {name for name, _ in model.named_parameters() if name.endswith("original0")}
    assert gains
    assert gains <= kept
    assert {name.replace("original0", "original1") for name in gains} <= decayed


def test_rate_groups_keep_decay_and_the_first_pattern_counts() -> None:
    model = build_model(CONFIGS["delay"])
    scales = {"emb_ext.*": 0.1, "*.0.*": 2.0}
    optimizer = build_optimizer(model, OptimConfig(lr=1e-2, weight_decay=0.3, lr_scales=scales))
    assert [(g["lr"], g["scale"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (1e-2, 1.0, 0.3),
        (1e-2, 1.0, 0.0),
        (1e-3, 0.1, 0.0),
        (2e-2, 2.0, 0.3),
        (2e-2, 2.0, 0.0),
    ]
    groups = names_of(model, optimizer)
    assert groups[2] == {f"emb_ext.{k}.weight" for k in range(3)}
    assert "language_model.layers.0.self_attn.q_proj.weight" in groups[3]
    assert "language_model.layers.0.input_layernorm.weight" in groups[4]
    assert sum(len(group) for group in groups) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out() -> None:
    model = build_model(CONFIGS["local_v15"])
    # A tied head is its table: freezing one freezes both.
    freeze_parameters(model, OptimConfig(freeze=["transformer.*", "audio_lm_heads.1.*"]), LoraConfig())
    trained = set().union(*names_of(model, build_optimizer(model, OptimConfig())))
    assert not any(name.startswith("transformer.") for name in trained)
    assert "audio_embeddings.1.weight" not in trained
    assert "audio_embeddings.0.weight" in trained


@pytest.mark.parametrize(
    ("optim", "lora", "message"),
    [
        ({"freeze": ["emb_exd.*"]}, {}, r"optim\.freeze: 'emb_exd\.\*' matches no parameter; near names: emb_ext\.\d"),
        ({"lr_scales": {"head": 2.0}}, {}, r"optim\.lr_scales: 'head' matches no parameter; near names: lm_heads\."),
        ({"freeze": ["*"]}, {}, r"optim\.freeze: \* leaves no parameter to train; drop a pattern"),
        (
            {"freeze": ["emb_ext.*"], "lr_scales": {"emb_ext.0.*": 2.0}},
            {},
            r"optim\.lr_scales: 'emb_ext\.0\.\*' matches only parameters that are not trained, e\.g\. emb_ext\.0",
        ),
        (
            {"freeze": ["lm_heads.*"]},
            {"rank": 2},
            r"optim\.freeze: 'lm_heads\.\*' matches only parameters that are not trained anyway, e\.g\. lm_heads\.0",
        ),
        (
            {"freeze": ["*.weight"]},
            {"rank": 2, "train": ["emb_ext.*"]},
            r"optim\.freeze: '\*\.weight' and lora\.train: 'emb_ext\.\*' both match emb_ext\.0\.weight; drop one",
        ),
        ({}, {"rank": 2, "train": ["emb.*"]}, r"lora\.train: 'emb\.\*' matches no parameter; near names: "),
        (
            {},
            {"rank": 2, "train": ["*.q_proj.weight"]},
            r"lora\.train: '\*\.q_proj\.weight' matches language_model\.layers\.0\.self_attn\.q_proj\.weight, which",
        ),
    ],
)
def test_contradictions(optim: dict[str, object], lora: dict[str, object], message: str) -> None:
    model = build_model(CONFIGS["delay"])
    config, adapters = OptimConfig(**optim), LoraConfig(**lora)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        apply_lora(model, adapters)
        freeze_parameters(model, config, adapters)
        build_optimizer(model, config)


def test_a_scale_is_positive() -> None:
    words = ["data.shards=[x]", "optim.lr_scales={emb: 0}"]
    with pytest.raises(ConfigError, match=r"optim\.lr_scales: 'emb': must be positive, got 0.*; freeze what must not"):
        load_config(TrainConfig, "train", words)


def test_fused_follows_the_same_rule_in_one_kernel() -> None:
    torch.manual_seed(0)
    start = nn.Linear(6, 5)
    ends = []
    for fused in (False, True):
        model = nn.Linear(6, 5)
        model.load_state_dict(start.state_dict())
        optimizer = build_optimizer(model, OptimConfig(lr=1e-2, fused=fused))
        assert [group["fused"] for group in optimizer.param_groups] == [True if fused else None] * 2
        for step in range(5):
            optimizer.zero_grad()
            model(torch.full((3, 6), 0.1 * step)).square().sum().backward()
            optimizer.step()
        ends.append(model.weight.detach())
    assert not torch.equal(ends[0], start.weight)
    torch.testing.assert_close(ends[1], ends[0])


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_clipped_by_their_norm_together(fused: bool) -> None:
    model = nn.Linear(2, 2)
    run = LitRun(model, load_config(TrainConfig, "train", ["experiment=tokenizer_xs"]))
    optimizer = build_optimizer(model, OptimConfig(fused=fused))
    model(torch.ones(1, 2) * 100).sum().backward()
    directions = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    run.configure_gradient_clipping(optimizer, 0.5)
    clipped = [p.grad for p in model.parameters() if p.grad is not None]
    assert torch.nn.utils.get_total_norm(clipped) == pytest.approx(0.5, rel=1e-4)
    scale = float(clipped[0][0, 0] / directions[0][0, 0])
    torch.testing.assert_close(clipped[1], directions[1] * scale)
