"""MossTTSDelay: documents apart, channels side by side, heads in one product."""

import pytest
import torch
from torch import Tensor

from moss.model.build import build_model
from moss.model.delay import DelayModel
from tests.model.toys import CONFIGS, some_tokens

LENGTHS = [5, 1, 9, 3]
CONFIG = CONFIGS["delay"]


@pytest.fixture(scope="module")
def model() -> DelayModel:
    torch.manual_seed(0)
    made = build_model(CONFIG).eval()
    assert isinstance(made, DelayModel)
    return made


def test_no_gradient_crosses_a_document(model: DelayModel) -> None:
    embedded: list[Tensor] = []
    documents = torch.cat([some_tokens(length) for length in LENGTHS], dim=1)
    embed = model.embed

    def remembered(tokens: Tensor) -> Tensor:
        embedded.append(embed(tokens).detach().requires_grad_())
        return embedded[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "embed", remembered)
        model(documents, document_lengths=LENGTHS).hidden[:, 6:15].sum().backward()
    moved = embedded[0].grad.abs().sum(-1)[0] > 0  # type: ignore[union-attr]
    assert moved.nonzero().flatten().tolist() == list(range(6, 15))


def test_the_pad_code_is_never_predicted(model: DelayModel) -> None:
    hidden = model(some_tokens(3)).hidden
    assert model.head_weight(0).shape == (40, 32)
    assert model.head_weight(2).shape == (10, 32)
    logits = model.channel_logits(hidden, 2)
    assert torch.isneginf(logits[..., 10]).all()
    torch.testing.assert_close(logits[..., :10], hidden @ model.head_weight(2).T)
    assert torch.isfinite(model.channel_logits(hidden, 0)).all()


def test_embedding_is_the_sum_of_the_channels(model: DelayModel) -> None:
    tokens = torch.tensor([[[3, 1, 2, 10]]])
    tables = [model.language_model.embed_tokens, *model.emb_ext]
    want = sum(table.weight[i] for table, i in zip(tables, [3, 1, 2, 10], strict=True))
    torch.testing.assert_close(model.embed(tokens)[0, 0], want)


@torch.no_grad()
def test_all_code_logits_at_once(model: DelayModel) -> None:
    hidden = model(some_tokens(3)).hidden
    want = torch.stack([hidden @ model.head_weight(channel).T for channel in (1, 2, 3)], dim=2)
    torch.testing.assert_close(model.code_logits(hidden), want)
    fused = build_model(CONFIG).eval()
    fused.load_state_dict(model.state_dict())
    fused.fuse_()
    assert isinstance(fused, DelayModel)
    torch.testing.assert_close(fused.code_logits(hidden), want, rtol=1e-5, atol=1e-6)


def test_all_channels_of_a_position_share_one_state(model: DelayModel) -> None:
    labels = torch.full((1, 5, 4), -100)
    labels[0, 1, 0], labels[0, 3, 2] = 7, 4
    hidden = torch.randn(1, 5, 32)
    seen = model.supervised(hidden, labels)
    assert torch.equal(seen.labels, labels[0, [1, 3]])
    assert seen.states.stride(1) == 0
    assert torch.equal(seen.states[:, 2], hidden[0, [1, 3]])
    assert seen.scales is None
    frame = model.begin_frame(hidden[0])
    before = frame.logits(2)
    frame.feed(0, torch.zeros(5, dtype=torch.long))
    assert torch.equal(frame.logits(2), before)
    assert torch.equal(before, model.channel_logits(hidden[0], 2))
