"""A step's rows add up to the loss over the whole step, however the step is cut and whatever share is computed."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moss.config.model import LocalV15ModelConfig, StopHead
from moss.config.train import TrainConfig
from moss.data.batch import TokenBatch
from moss.data.loader import TokenStream
from moss.data.shard import open_datasets
from moss.loss import channel_loss_sums, expand_channel_weights, weighted_mean
from moss.model.build import build_model
from moss.model.depth import DepthBlock
from moss.spec import IGNORE_LABEL
from moss.training.lit_lm import LitGenerator, channel_names, draw_frames, draw_key
from moss.training.run import build_builder
from tests.tiny import tiny_shards
from tests.training.small import ARCHITECTURES, CONFIGS, DEPTH, small_config


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards")


def rows_of(config: TrainConfig) -> list[TokenBatch]:
    """The rows of the first step."""
    builder, _ = build_builder(config)
    stream = TokenStream(open_datasets(config.data.folders), builder, config.data, config.seed)
    return list(islice(stream, config.data.micro_batches_per_step))


def module_of(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[LitGenerator, dict[str, Any]]:
    """The same weights for every call, and what it logs."""
    torch.manual_seed(0)
    module = LitGenerator(build_model(config.model), config)
    logged: dict[str, Any] = {}
    monkeypatch.setattr(module, "log", lambda key, value: logged.update({key: value}))
    return module.train(), logged


def gradients(module: LitGenerator, rows: list[TokenBatch]) -> dict[str, Tensor]:
    """What one optimizer step would see."""
    module.zero_grad()
    for index, row in enumerate(rows):
        # Lightning divides each row's loss by the number of accumulated rows.
        (module.training_step(row, index) / len(rows)).backward()
    return {name: p.grad.clone() for name, p in module.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("weights", ["null", "[1,6]"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_of_a_step_have_the_gradient_of_the_whole_step(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, weights: str
) -> None:
    extra = {"data__micro_batches_per_step": 3, "loss__channel_weights": weights}
    config = small_config(architecture, shards, tmp_path, **extra)
    rows = rows_of(config)
    module, logged = module_of(config, monkeypatch)
    mine = gradients(module, rows)
    assert module.cursor == 1

    module.zero_grad()
    tokens, labels = (torch.cat([getattr(row, name) for row in rows], dim=1) for name in ("tokens", "labels"))
    lengths = [length for row in rows for length in row.document_lengths]
    seen = module.model.supervised(module.model(tokens, document_lengths=lengths).hidden, labels)
    sums = channel_loss_sums(seen.states, seen.labels, module.model.head_weight)
    # The loader counts a step's targets without building them.
    assert sums.counts.tolist() == rows[0].step_counts.tolist()
    loss = weighted_mean(sums.sums, sums.counts, expand_channel_weights(config.loss.channel_weights, 4))
    loss.backward()
    assert float(logged["train/loss"]) == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in module.model.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad or name not in mine), name
        if parameter.grad is not None:
            torch.testing.assert_close(mine[name], parameter.grad, rtol=1e-4, atol=1e-6)
    names = [name for name in channel_names(config.model) if name is not None]
    assert set(logged) == {"train/loss", *(f"train/loss/{name}" for name in names)}
    means = dict(zip(channel_names(config.model), (sums.sums / sums.counts).tolist(), strict=True))
    assert all(float(logged[f"train/loss/{name}"]) == pytest.approx(means[name], rel=1e-5) for name in names)
    positions, flops = module.work(rows[0])
    assert positions == rows[0].num_positions
    assert flops > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_channel_without_targets(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    config = small_config(architecture, shards, tmp_path, loss__channel_weights="[1,2,3,4,5]")
    module, logged = module_of(config, monkeypatch)
    counts = torch.tensor([4, 2, 2, 2, 0])
    # The published Local v1.5 leaves its weight out, the others divide by it as well.
    divisor = 10 if architecture == "local_v15" else 15
    assert float(module.mean(2.0 * counts, counts)) == pytest.approx(2 * 10 / divisor)
    # In a step, what counts is whether any of its rows has targets.
    row = rows_of(config)[0]
    module.training_step(row, 0)
    whole = float(logged["train/loss"])
    without = replace(row, labels=row.labels.clone(), step_counts=row.step_counts.clone())
    without.labels[..., 4] = IGNORE_LABEL
    module.training_step(without, 0)
    sums = whole * 15 - 5 * float(logged_mean(module, row, 4))
    if architecture != "realtime":
        assert float(logged["train/loss"]) == pytest.approx(sums / 15, rel=1e-5)
        without.step_counts[4] = 0
        module.training_step(without, 0)
        assert float(logged["train/loss"]) == pytest.approx(sums / divisor, rel=1e-5)


def logged_mean(module: LitGenerator, row: TokenBatch, channel: int) -> Tensor:
    """Mean cross-entropy of one channel of a row, computed whole."""
    seen = module.model.supervised(module.model(row.tokens, document_lengths=row.document_lengths).hidden, row.labels)
    sums = channel_loss_sums(seen.states, seen.labels, module.model.head_weight)
    return (sums.sums / sums.counts).detach()[channel]


@pytest.mark.parametrize("architecture", DEPTH)
def test_logged_means_are_over_the_frames_that_were_computed(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    config = small_config(architecture, shards, tmp_path, loss__depth_frac=0.25)
    row = rows_of(config)[0]
    module, logged = module_of(config, monkeypatch)
    module.training_step(row, 0)
    # The same frames, without the factor that makes them stand for all.
    seen = module.model.supervised(
        module.model(row.tokens, document_lengths=row.document_lengths).hidden, row.labels, module._frames(row)
    )
    assert seen.scales is not None
    assert float(seen.scales[1]) > 3
    sums = channel_loss_sums(seen.states, seen.labels, module.model.head_weight)
    means = dict(zip(channel_names(config.model), (sums.sums / sums.counts).tolist(), strict=True))
    for name, mean in means.items():
        if name is not None:
            assert float(logged[f"train/loss/{name}"]) == pytest.approx(mean, rel=1e-5)
    # A row without any target adds nothing to them.
    empty = replace(row, labels=torch.full_like(row.labels, IGNORE_LABEL), cursor=row.step)
    module.training_step(empty, 0)
    module.training_step(row, 0)
    assert float(logged["train/loss/codebook_00"]) == pytest.approx(means["codebook_00"], rel=1e-5)


def test_channel_names() -> None:
    codebooks = ["codebook_00", "codebook_01", "codebook_02"]
    first = {architecture: channel_names(config)[0] for architecture, config in CONFIGS.items()}
    assert first == {"delay": "text", "local": "text", "local_v15": "stop", "realtime": None}
    assert all(channel_names(config)[1:] == codebooks for config in CONFIGS.values())
    v15 = CONFIGS["local_v15"]
    assert isinstance(v15, LocalV15ModelConfig)
    assert channel_names(replace(v15, stop_head=StopHead.full_vocab))[0] == "text"


def test_exactly_the_share_is_drawn_by_the_key_alone() -> None:
    for count, frac, chosen in [(10, 0.5, 5), (10, 0.51, 6), (3, 0.01, 1), (7, 1.0, 7), (1, 0.2, 1)]:
        assert int(draw_frames(count, frac, 3).sum()) == chosen
    keys = {draw_key(*parts) for parts in [("depth", 0, 0), ("depth", 1, 0), ("depth", 0, 1), ("dropout", 0, 0)]}
    assert len(keys) == 4
    assert torch.equal(draw_frames(50, 0.3, 9), draw_frames(50, 0.3, 9))
    assert not torch.equal(draw_frames(50, 0.3, 9), draw_frames(50, 0.3, 8))


@pytest.mark.parametrize("architecture", DEPTH)
def test_a_share_of_the_frames_has_the_whole_gradient_on_average(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    config = small_config(architecture, shards, tmp_path, loss__depth_frac=0.5)
    exact = small_config(architecture, shards, tmp_path)
    rows = rows_of(config)
    module, logged = module_of(config, monkeypatch)
    whole, _ = module_of(exact, monkeypatch)
    want = gradients(whole, rows)
    total = {name: torch.zeros_like(value) for name, value in want.items()}
    text: set[float] = set()
    draws = 60
    for step in range(draws):
        monkeypatch.setattr("moss.training.lit_lm.draw_key", lambda *parts, step=step: 1000 * step + parts[2])
        for name, value in gradients(module, rows).items():
            total[name] += value / draws
        text |= {float(value) for key, value in logged.items() if key.endswith(("text", "stop"))}
    # Text and stop decision are computed on every row whatever is drawn.
    assert len(text) == (0 if architecture == "realtime" else 1)
    flat = [torch.cat([tensors[name].flatten() for name in want]) for tensors in (want, total)]
    assert torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0) > 0.97
    assert float(flat[1].norm() / flat[0].norm()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient_checkpointing_changes_nothing(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    config = small_config(architecture, shards, tmp_path)
    rows = rows_of(config)
    runs = []
    for enabled in (False, True):
        module, logged = module_of(config, monkeypatch)
        module.model.set_gradient_checkpointing(enabled)
        blocks = [block for block in module.model.modules() if isinstance(block, DepthBlock)]
        calls = [0] * (1 + len(blocks))
        for number, block in enumerate([module.model.backbone.layers[0].self_attn, *blocks]):

            def count(*_: object, number: int = number, calls: list[int] = calls) -> None:
                calls[number] += 1

            block.register_forward_pre_hook(count)
        runs.append((gradients(module, rows), float(logged["train/loss"])))
        # Recomputed means called a second time, in the backward pass.
        assert calls == [2 if enabled else 1] * len(calls)
    assert runs[0][1] == runs[1][1]
    assert runs[0][0].keys() == runs[1][0].keys()
    for name, value in runs[0][0].items():
        torch.testing.assert_close(runs[1][0][name], value, rtol=0, atol=1e-6)
