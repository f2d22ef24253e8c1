"""MossTTSLocal v1: padding rows, frozen tables, what the depth transformer is fed and what may be drawn."""

import pytest
import torch
from torch import nn

from moss.model.build import build_model
from moss.model.channels import weight_of
from moss.model.local import LocalModel, PlainRmsNorm
from moss.spec import IGNORE_LABEL
from tests.model.toys import CONFIGS, some_labels, some_tokens, toy_model


@pytest.fixture
def model() -> LocalModel:
    made = toy_model(CONFIGS["local"])
    assert isinstance(made, LocalModel)
    return made


def test_padding_rows_start_at_zero_and_get_no_gradient() -> None:
    model = build_model(CONFIGS["local"])
    assert isinstance(model, LocalModel)
    tokens = some_tokens(9)
    tokens[0, :3, 0] = 30
    assert (tokens[..., 1:] == 10).any()
    model(tokens).hidden.pow(2).sum().backward()
    for table, row in zip(model.model.embedding_list, [30, 10, 10, 10], strict=True):
        assert isinstance(table, nn.Embedding)
        assert table.weight.grad is not None
        assert table.weight[row].abs().max() == 0
        assert table.weight.grad[row].abs().max() == 0
        assert table.weight.grad.abs().max() > 0


def test_a_checkpoint_may_fill_the_padding_rows(model: LocalModel) -> None:
    tokens = torch.tensor([[[30, 10, 10, 10]]])
    rows = zip(model.model.embedding_list, [30, 10, 10, 10], strict=True)
    want = torch.stack([weight_of(table)[row] for table, row in rows]).sum(0)
    torch.testing.assert_close(model.embed(tokens)[0, 0], want)
    assert model.embed(tokens).abs().max() > 0


def test_the_unused_text_table_is_there_and_frozen(model: LocalModel) -> None:
    table = dict(model.named_parameters())["model.language_model.embed_tokens.weight"]
    assert not table.requires_grad
    assert table.shape == (40, 32)
    before = model(some_tokens(5)).hidden
    with torch.no_grad():
        table.add_(1.0)
    assert torch.equal(model(some_tokens(5)).hidden, before)


@torch.no_grad()
def test_each_channel_sees_the_labels_before_it_and_not_the_last_code(model: LocalModel) -> None:
    hidden, labels = torch.randn(3, 32), some_labels(7)[0, 2:5]
    states = model.depth_states(hidden, labels)
    for channel in range(4):
        changed = labels.clone()
        changed[:, channel] = (changed[:, channel] + 1) % 10
        moved = (model.depth_states(hidden, changed) - states).abs().amax(dim=(0, 2)) > 1e-6
        assert moved.tolist() == [False] * (channel + 1) + [True] * (3 - channel)


@torch.no_grad()
def test_a_label_without_a_target_is_the_zero_vector(model: LocalModel) -> None:
    hidden, labels = torch.randn(3, 32), some_labels(7)[0, 2:5]
    ignored = labels.clone()
    ignored[:, 1] = IGNORE_LABEL
    weight_of(model.model.embedding_list[1])[labels[:, 1]] = 0
    torch.testing.assert_close(model.depth_states(hidden, ignored), model.depth_states(hidden, labels))


def test_the_pad_code_competes_in_training_and_is_never_drawn(model: LocalModel) -> None:
    assert [model.head_weight(channel).shape[0] for channel in range(4)] == [40, 11, 11, 11]
    frame = model.begin_frame(torch.randn(2, 32))
    assert torch.isfinite(frame.logits(0)).all()
    frame.feed(0, torch.tensor([36, 36]))
    assert torch.isneginf(frame.logits(1)[:, 10]).all()
    assert torch.isfinite(frame.logits(1)[:, :10]).all()


def test_the_drawn_text_id_reaches_the_codes(model: LocalModel) -> None:
    logits = []
    for text in (36, 34):
        frame = model.begin_frame(torch.ones(1, 32))
        frame.feed(0, torch.tensor([text]))
        logits.append(frame.logits(1)[:, :10])
    assert not torch.allclose(logits[0], logits[1], atol=1e-4)


def test_head_norm_stays_in_the_dtype_of_its_input() -> None:
    norm = PlainRmsNorm(64).to(torch.bfloat16)
    x = (torch.randn(4, 64) * 3).to(torch.bfloat16)
    want = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    assert torch.equal(norm(x), want)
    upcast = nn.functional.rms_norm(x.float(), (64,), eps=1e-6).to(torch.bfloat16)
    assert not torch.equal(norm(x), upcast)
