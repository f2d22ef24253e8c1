"""The schedule's values, and what weight decay touches."""

import pytest
import torch
from torch import nn

from moss.config.train import OptimConfig
from moss.model.build import build_model
from moss.training.optim import build_optimizer, build_scheduler, lr_factor
from tests.model.test_delay import CONFIG


@pytest.mark.parametrize(("step", "factor"), [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (35, 0.6), (60, 0.2), (70, 0.2)])
def test_warm_up_then_cosine(step: int, factor: float) -> None:
    assert lr_factor(step, warmup_steps=10, max_steps=60, min_lr_frac=0.2) == pytest.approx(factor)


def test_no_warm_up_starts_at_the_peak_and_one_step_runs_are_possible() -> None:
    assert lr_factor(0, 0, 100, 0.1) == 1.0
    assert lr_factor(0, 1, 1, 0.1) == 1.0
    assert lr_factor(1, 1, 1, 0.1) == 1.0


def test_the_first_update_uses_step_0() -> None:
    layer = nn.Linear(2, 2)
    optimizer = build_optimizer(layer, OptimConfig(lr=1.0))
    scheduler = build_scheduler(optimizer, OptimConfig(lr=1.0, warmup_steps=4), 10)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_only_matrices_decay() -> None:
    model = build_model(CONFIG)
    model.lm_heads[1].weight.requires_grad_(False)
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.3))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert decayed | kept == set(names.values()) - {"lm_heads.1.weight"}
    assert all("norm" in name or name.startswith("emb_ext") or "embed_tokens" in name for name in kept)
    assert all("proj" in name or name.startswith("lm_heads") for name in decayed)
    assert isinstance(optimizer, torch.optim.AdamW)
