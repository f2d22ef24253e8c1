"""MossTTSRealtime against numbers of the published implementation: model, depth transformer, loss."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from moss.loss import channel_loss_sums, weighted_mean
from moss.model.hf_map import realtime_config
from moss.model.realtime import RealtimeModel
from moss.spec import IGNORE_LABEL
from tests.parity.fixture_files import load_fixture
from tests.parity.gradients import check_gradients

TEXT_TABLE = "embed_tokens.0.weight"


def model_of(entry: dict[str, Any]) -> RealtimeModel:
    model = RealtimeModel(realtime_config(entry["config"]))
    model.load_state_dict(entry["state_dict"], strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def fixture() -> dict[str, Any]:
    return load_fixture("ref_realtime.pt.gz")


@pytest.fixture(scope="module")
def trained(fixture: dict[str, Any]) -> RealtimeModel:
    """After one backward pass of the published batch."""
    model, batch = model_of(fixture["train"]), fixture["dataset"]["batch"]
    sums, _ = model_sums(model, batch)
    weighted_mean(sums.sums, sums.counts, None).backward()
    return model


def next_targets(labels: Tensor) -> Tensor:
    """Published labels stand at the position of their own row; ours where they are predicted."""
    return functional.pad(labels[:, 1:], (0, 0, 0, 1), value=IGNORE_LABEL)


def model_sums(model: RealtimeModel, batch: dict[str, Tensor]) -> tuple[Any, Tensor]:
    hidden = model(batch["input_ids"], attention_mask=batch["attention_mask"]).hidden
    seen = model.supervised(hidden, next_targets(batch["labels"]))
    return channel_loss_sums(seen.states, seen.labels, model.head_weight, scales=seen.scales), hidden


def entries_with_weights() -> list[str]:
    fixture = load_fixture("ref_realtime.pt.gz")
    return [name for name, entry in fixture.items() if isinstance(entry, dict) and entry.get("state_dict")]


@pytest.mark.parametrize("name", entries_with_weights())
def test_strict_state_dict(fixture: dict[str, Any], name: str) -> None:
    entry = fixture[name]
    own = model_of(entry).state_dict()
    assert {key: value.shape for key, value in own.items()} == {k: v.shape for k, v in entry["state_dict"].items()}


def test_rotary_frequencies(fixture: dict[str, Any], trained: RealtimeModel) -> None:
    want = fixture["local_rope"]
    assert want["attention_scaling"] == 1.0
    network = trained.local_transformer.model
    tables = network._rotary_for(torch.zeros(1, 1))
    assert tables is not None
    cos, sin = tables
    half = cos.shape[1] // 2
    # The angle of position 1 is the frequency itself; all are at most one radian.
    torch.testing.assert_close(torch.atan2(sin[1], cos[1])[:half], want["inv_freq"], rtol=1e-5, atol=1e-7)
    assert torch.equal(cos[:, :half], cos[:, half:])


def test_hidden_states_and_loss(fixture: dict[str, Any], trained: RealtimeModel) -> None:
    entry, batch = fixture["train"], fixture["dataset"]["batch"]
    with torch.no_grad():
        sums, hidden = model_sums(trained, batch)
    valid = batch["attention_mask"].bool()
    assert torch.allclose(hidden[valid], entry["last_hidden_state"][valid], atol=1e-5)
    assert float(weighted_mean(sums.sums, sums.counts, None)) == pytest.approx(float(entry["loss"]), abs=1e-6)
    assert int(sums.counts[0]) == 0
    channels = sums.sums[1:] / sums.counts[1:].clamp(min=1)
    assert torch.allclose(channels, entry["per_channel_ce"], atol=1e-6)


def test_gradients(fixture: dict[str, Any], trained: RealtimeModel) -> None:
    entry = fixture["train"]
    check_gradients(trained, entry["grads"], skip={TEXT_TABLE})
    sparse = entry["text_emb_grad"]
    table = dict(trained.named_parameters())[TEXT_TABLE]
    dense = torch.zeros_like(table)
    dense[sparse["rows"]] = sparse["values"]
    assert table.grad is not None
    assert float((table.grad - dense).abs().max()) <= 1e-5 * float(dense.abs().max()) + 1e-7


def test_local_logits(fixture: dict[str, Any], trained: RealtimeModel) -> None:
    batch = fixture["dataset"]["batch"]
    found = [key for key in fixture["train"] if key.startswith("local_logits")]
    assert found
    with torch.no_grad():
        hidden = trained(batch["input_ids"], attention_mask=batch["attention_mask"]).hidden
        seen = trained.supervised(hidden, next_targets(batch["labels"]))
    for key in found:
        want = fixture["train"][key]
        for codebook in range(trained.config.num_codebooks):
            got = seen.states[: len(want), codebook + 1] @ trained.head_weight(codebook + 1).T
            assert torch.allclose(got, want[:, codebook], atol=1e-5), (key, codebook)


def test_cached_greedy_depth_equals_teacher_forcing(fixture: dict[str, Any]) -> None:
    entry, model = fixture["depth"], depth_model(fixture)
    hidden, greedy = entry["hidden"][:, 0], entry["greedy"]
    drawn = []
    with torch.no_grad():
        frame = model.begin_frame(hidden)
        for channel in range(1, model.num_channels):
            logits = frame.logits(channel)
            assert torch.allclose(logits, entry["tf_logits"][:, channel - 1], atol=1e-5), channel
            drawn.append(logits.argmax(-1))
            frame.feed(channel, drawn[-1])
        assert torch.equal(torch.stack(drawn, dim=1), greedy)
        states = model.depth_states(hidden, functional.pad(greedy, (1, 0)))
        heads = [states[:, k] @ model.head_weight(k + 1).T for k in range(model.config.num_codebooks)]
    assert torch.allclose(torch.stack(heads, dim=1), entry["tf_logits"], atol=1e-5)


def depth_model(fixture: dict[str, Any]) -> RealtimeModel:
    """The model of the `depth` entry: the training entry's weights."""
    return model_of(fixture["train"])
