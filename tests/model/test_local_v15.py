"""MossTTSLocal v1.5: tied heads, the stop head's numbering, pad codes that are nothing."""

import dataclasses

import pytest
import torch

from moss.config.model import DepthPosition, LocalV15ModelConfig
from moss.model.build import build_model
from moss.model.channels import weight_of
from moss.model.local_v15 import LocalV15Model
from moss.spec import IGNORE_LABEL
from tests.model.toys import CONFIGS, FULL_VOCAB, some_labels, toy_model


def model_of(config: object) -> LocalV15Model:
    assert isinstance(config, LocalV15ModelConfig)
    made = toy_model(config)
    assert isinstance(made, LocalV15Model)
    return made


@pytest.fixture
def model() -> LocalV15Model:
    return model_of(CONFIGS["local_v15"])


def test_tied_heads_are_one_tensor_also_after_loading(model: LocalV15Model) -> None:
    names = dict(model.named_parameters(remove_duplicate=False))
    assert names["text_lm_head.weight"] is names["transformer.embed_tokens.weight"]
    for index in range(3):
        assert names[f"audio_lm_heads.{index}.weight"] is names[f"audio_embeddings.{index}.weight"]
    other = build_model(model.config)
    other.load_state_dict(model.state_dict(), strict=True)
    assert isinstance(other, LocalV15Model)
    assert other.audio_lm_heads[2].weight is other.audio_embeddings[2].weight
    assert torch.equal(other.text_lm_head.weight, model.transformer.embed_tokens.weight)


def test_the_stop_head_starts_as_the_rows_of_its_two_ids() -> None:
    model = build_model(CONFIGS["local_v15"])
    assert isinstance(model, LocalV15Model)
    assert torch.equal(model.head_weight(0), model.transformer.embed_tokens.weight[[36, 34]])
    assert torch.equal(model.head_weight(2), weight_of(model.audio_embeddings[1]))


def test_text_labels_become_go_on_and_stop(model: LocalV15Model) -> None:
    labels = torch.tensor([[36, 1, 2, 3], [34, -100, -100, -100], [31, 1, 2, 3], [-100, 1, -100, -100]])
    seen = model.supervised(torch.randn(4, 32), labels)
    assert seen.labels[:, 0].tolist() == [0, 1, IGNORE_LABEL, IGNORE_LABEL]
    assert torch.equal(seen.labels[:, 1:], labels[:, 1:])
    assert seen.states.shape == (4, 4, 32)
    assert torch.equal(seen.states[:, 0], seen.states[:, 1])


def test_the_whole_vocabulary_keeps_its_text_labels_and_draws_among_two() -> None:
    model = model_of(FULL_VOCAB)
    labels = some_labels(7)
    labels[0, 3, 0] = 31
    assert torch.equal(model.supervised(torch.randn(1, 7, 32), labels).labels, labels[0, 2:])
    assert model.head_weight(0) is model.transformer.embed_tokens.weight
    assert "local_text_lm_head.weight" not in model.state_dict()
    assert model.begin_frame(torch.randn(2, 32)).logits(0).shape == (2, 2)


def test_pad_codes_add_nothing(model: LocalV15Model) -> None:
    tokens = torch.tensor([[[5, 10, 2, 10]]])
    want = model.transformer.embed_tokens.weight[5] + weight_of(model.audio_embeddings[1])[2]
    assert torch.equal(model.embed(tokens)[0, 0], want)


@torch.no_grad()
def test_the_text_id_is_no_input_and_the_last_code_neither(model: LocalV15Model) -> None:
    hidden, labels = torch.randn(3, 32), some_labels(7)[0, 2:5]
    states = model.depth_states(hidden, labels)
    assert states.shape == (3, 3, 32)
    for channel, moves in enumerate([[False] * 3, [False, True, True], [False, False, True], [False] * 3]):
        changed = labels.clone()
        changed[:, channel] = (changed[:, channel] + 1) % 10
        moved = (model.depth_states(hidden, changed) - states).abs().amax(dim=(0, 2)) > 1e-6
        assert moved.tolist() == moves
    frame = model.begin_frame(hidden)
    first = frame.logits(1)
    frame.feed(0, torch.tensor([0, 1, 0]))
    assert torch.equal(frame.logits(1), first)


def test_positions_follow_the_configuration(model: LocalV15Model) -> None:
    assert model.local_transformer.wpe is None
    learned = model_of(dataclasses.replace(model.config, depth_position=DepthPosition.learned))
    assert learned.state_dict()["local_transformer.wpe.weight"].shape == (4, 32)
