"""MossTTSLocal v1 against numbers of the published implementation: model, depth transformer, loss."""

from typing import Any

import pytest
import torch
from torch import Tensor

from moss.loss import channel_loss_sums, weighted_mean
from moss.model.hf_map import local_config
from moss.model.local import LocalModel
from tests.parity.fixture_files import load_fixture
from tests.parity.gradients import check_gradients


def model_of(entry: dict[str, Any]) -> LocalModel:
    model = LocalModel(local_config(entry["config"]))
    model.load_state_dict(entry["state_dict"], strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def fixture() -> dict[str, Any]:
    return load_fixture("ref_local.pt.gz")


@pytest.fixture(scope="module")
def small(fixture: dict[str, Any]) -> tuple[dict[str, Any], LocalModel]:
    return fixture["small"], model_of(fixture["small"])


def entries_with_weights() -> list[str]:
    fixture = load_fixture("ref_local.pt.gz")
    return [name for name, entry in fixture.items() if isinstance(entry, dict) and entry.get("state_dict")]


@pytest.mark.parametrize("name", entries_with_weights())
def test_strict_state_dict(fixture: dict[str, Any], name: str) -> None:
    entry = fixture[name]
    own = model_of(entry).state_dict()
    assert {key: value.shape for key, value in own.items()} == {k: v.shape for k, v in entry["state_dict"].items()}


def test_depth_transformer(fixture: dict[str, Any], small: tuple[dict[str, Any], LocalModel]) -> None:
    entry, network = fixture["depth_transformer"], small[1].local_transformer
    with torch.no_grad():
        assert torch.allclose(network(entry["x"]), entry["y"], atol=1e-5)


def test_depth_transformer_is_causal(fixture: dict[str, Any], small: tuple[dict[str, Any], LocalModel]) -> None:
    entry, network = fixture["depth_transformer"], small[1].local_transformer
    changed = entry["x"].clone()
    changed[:, -1] += 1
    with torch.no_grad():
        moved = (network(changed) - network(entry["x"])).abs().amax(dim=(0, 2))
    # What the published class does with its own causal attention, and what it leaks under eager attention.
    assert torch.equal(moved > 1e-6, entry["leak"]["sdpa"] > 1e-6)
    assert int((moved > 1e-6).sum()) == 1
    assert int((entry["leak"]["eager"] > 1e-6).sum()) == len(moved)


def test_input_embeddings(small: tuple[dict[str, Any], LocalModel]) -> None:
    entry, model = small
    found = {key: value for key, value in entry.items() if key.startswith("inputs_embeds")}
    assert len(found) >= 2
    with torch.no_grad():
        for key, want in found.items():
            kept = int(key.removeprefix("inputs_embeds_nvq")) if key != "inputs_embeds" else None
            assert torch.allclose(model.embed(entry["inputs"]["input_ids"], kept), want, atol=1e-5), key


def test_hidden_states_and_logits(small: tuple[dict[str, Any], LocalModel]) -> None:
    entry, model = small
    valid = entry["inputs"]["attention_mask"].bool()
    with torch.no_grad():
        hidden = model(entry["inputs"]["input_ids"], attention_mask=valid).hidden
        assert torch.allclose(hidden[valid], entry["global_hidden"][valid], atol=1e-5)
        states = model.depth_states(hidden[valid], entry["inputs"]["labels"][valid])
    assert len(entry["logits_all"]) == model.num_channels == states.shape[1]
    for channel, want in enumerate(entry["logits_all"]):
        got = states[:, channel] @ model.head_weight(channel).T
        assert torch.allclose(got, want[valid], atol=1e-5), channel


def loss_case_names() -> list[str]:
    return list(load_fixture("ref_local.pt.gz")["small"]["loss_cases"])


@pytest.mark.parametrize("name", loss_case_names())
def test_loss_and_gradients(fixture: dict[str, Any], name: str) -> None:
    entry = fixture["small"]
    case = entry["loss_cases"][name]
    model = model_of(entry)
    hidden = model(entry["inputs"]["input_ids"], attention_mask=entry["inputs"]["attention_mask"]).hidden
    seen = model.supervised(hidden, entry["inputs"]["labels"])
    total = channel_loss_sums(seen.states, seen.labels, model.head_weight, scales=seen.scales)
    assert torch.allclose(total.sums / total.counts.clamp(min=1), case["loss_all"], atol=1e-6)
    # Without weights the published loss is the mean over channels, not over targets.
    weights = torch.ones(model.num_channels) if case["weights"] is None else torch.tensor(case["weights"])
    loss = weighted_mean(total.sums, total.counts, weights)
    assert float(loss.detach()) == pytest.approx(float(case["loss"]), abs=1e-6)
    loss.backward()
    check_gradients(model, case["grads"])


def test_cached_depth_equals_teacher_forcing(small: tuple[dict[str, Any], LocalModel]) -> None:
    entry, model = small
    labels = entry["inputs"]["labels"]
    whole: Tensor = (labels >= 0).all(dim=-1)
    hidden, labels = entry["global_hidden"][whole], labels[whole]
    assert len(labels) > 0
    with torch.no_grad():
        frame = model.begin_frame(hidden)
        for channel, want in enumerate(entry["logits_all"]):
            logits = frame.logits(channel)
            ids = model.config.vocab_size if channel == 0 else model.config.codebook_size
            assert torch.allclose(logits[:, :ids], want[whole][:, :ids], atol=1e-5), channel
            assert torch.isneginf(logits[:, ids:]).all()
            frame.feed(channel, labels[:, channel])
