"""MossTTSRealtime: no text head, tables of its own in depth, end of turn as a code."""

import pytest
import torch

from moss.loss import channel_loss_sums
from moss.model.build import build_model
from moss.model.realtime import RealtimeModel
from moss.spec import IGNORE_LABEL
from tests.model.toys import CONFIGS, some_labels, some_tokens, toy_model


@pytest.fixture
def model() -> RealtimeModel:
    made = toy_model(CONFIGS["realtime"])
    assert isinstance(made, RealtimeModel)
    return made


def test_the_text_channel_has_no_target(model: RealtimeModel) -> None:
    labels = some_labels(9)
    seen = model.supervised(torch.randn(1, 9, 32), labels)
    assert (labels[..., 0] != IGNORE_LABEL).any()
    assert (seen.labels[:, 0] == IGNORE_LABEL).all()
    assert model.head_weight(0).shape == (1, 32)
    sums = channel_loss_sums(seen.states, seen.labels, model.head_weight)
    assert sums.counts[0] == 0
    assert sums.sums[0] == 0


def test_all_rows_of_a_head_compete(model: RealtimeModel) -> None:
    assert [model.head_weight(channel).shape for channel in (1, 2, 3)] == [(13, 32)] * 3
    frame = model.begin_frame(torch.randn(2, 32))
    assert frame.logits(1).shape == (2, 13)
    assert torch.isfinite(frame.logits(1)).all()
    config = model.config
    assert (config.bos_code, config.eos_code) == (11, 12)


def test_end_of_turn_stands_alone_in_its_row(model: RealtimeModel) -> None:
    """The other codes of that row have no target, and the pad code stands for them as an input."""
    hidden = torch.randn(1, 32)
    ended = torch.tensor([[IGNORE_LABEL, 12, IGNORE_LABEL, IGNORE_LABEL]])
    filled = torch.tensor([[IGNORE_LABEL, 12, 10, 10]])
    assert torch.equal(model.depth_states(hidden, ended), model.depth_states(hidden, filled))
    seen = model.supervised(hidden, ended)
    assert channel_loss_sums(seen.states, seen.labels, model.head_weight).counts.tolist() == [0, 1, 0, 0]


@torch.no_grad()
def test_each_codebook_sees_those_before_it(model: RealtimeModel) -> None:
    hidden, labels = torch.randn(3, 32), some_labels(7)[0, 2:5]
    states = model.depth_states(hidden, labels)
    for channel, moves in enumerate([[False] * 3, [False, True, True], [False, False, True], [False] * 3]):
        changed = labels.clone()
        changed[:, channel] = (changed[:, channel] + 1) % 10
        moved = (model.depth_states(hidden, changed) - states).abs().amax(dim=(0, 2)) > 1e-6
        assert moved.tolist() == moves


def test_padding_rows_and_the_unused_table() -> None:
    model = build_model(CONFIGS["realtime"])
    assert isinstance(model, RealtimeModel)
    parameters = dict(model.named_parameters())
    assert not parameters["language_model.embed_tokens.weight"].requires_grad
    hidden = model(some_tokens(9)).hidden
    states = model.supervised(hidden, some_labels(9)).states
    states.pow(2).sum().backward()
    padded = {f"embed_tokens.{index}.weight": 10 for index in (1, 2, 3)}
    padded |= {f"local_transformer.model.embed_tokens.{index}.weight": 10 for index in (0, 1)}
    padded["embed_tokens.0.weight"] = 30
    for name, row in padded.items():
        weight = parameters[name]
        assert weight.grad is not None
        assert weight[row].abs().max() == 0, name
        assert weight.grad[row].abs().max() == 0, name
        assert weight.grad.abs().max() > 0, name


def test_left_out_frames_are_not_computed_at_all(model: RealtimeModel) -> None:
    labels = some_labels(9)
    frames = torch.tensor([True, False, False, True, False, False, False])
    seen = model.supervised(torch.randn(1, 9, 32), labels, frames)
    assert len(seen.states) == 2
    assert seen.scales is not None
    assert seen.scales.tolist() == [1.0] + [3.5] * 3
