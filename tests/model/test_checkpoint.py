"""A generator's folder comes back bit for bit, and says what is wrong with it."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moss.config.model import TextTokenizerConfig, TextTokenizerKind
from moss.errors import CheckpointError
from moss.model.build import build_model
from moss.model.checkpoint import ModelCard, load_generator, load_weights, read_card, save_weights
from moss.sequence.prompt import TEMPLATE_HASH
from tests.model.test_delay import CONFIG

CARD = ModelCard(
    model=CONFIG,
    text_tokenizer=TextTokenizerConfig(kind=TextTokenizerKind.compact),
    text_fingerprint="abc",
    tokenizer={"name": "test", "fingerprint": "f"},
    tokenizer_config={"kind": "mel_rvq"},
    step=7,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_weights(build_model(CONFIG).state_dict(), tmp_path)
    (tmp_path / "moss.json").write_text(CARD.to_json())
    return tmp_path


def test_round_trip_is_bitwise(folder: Path) -> None:
    torch.manual_seed(0)
    saved = build_model(CONFIG).state_dict()
    model, card = load_generator(folder)
    assert card == CARD
    assert not model.training
    loaded = model.state_dict()
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())


def test_missing_card(folder: Path) -> None:
    (folder / "moss.json").unlink()
    with pytest.raises(CheckpointError, match="no moss.json, so this is not a checkpoint folder"):
        load_generator(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format_version=9), r"moss\.json: format version 9, this program reads 1"),
        (lambda c: c.update(architecture="cat"), "architecture 'cat' is not a generator; expected one of delay"),
        (
            lambda c: c.update(template={"name": "old", "hash": "123"}),
            rf"trained with prompt template old \(123\), this program has moss_tts_delay_v1 \({TEMPLATE_HASH}\); use",
        ),
        (
            lambda c: c["model"].update(num_layers="two", hiden_size=3),
            r"2 mistakes in the configuration:\n.*hiden_size: no such setting.*\n.*num_layers: expected a whole number",
        ),
        (lambda c: c.pop("text_tokenizer"), "damaged or of another program .'text_tokenizer'"),
        (lambda c: c.update(template=None), "damaged or of another program"),
    ],
)
def test_a_card_that_cannot_be_used(folder: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    content = json.loads((folder / "moss.json").read_text())
    change(content)
    (folder / "moss.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        load_generator(folder)


@pytest.mark.parametrize("content", ["{", "[]", '"text"'])
def test_a_card_that_is_not_a_json_object(folder: Path, content: str) -> None:
    (folder / "moss.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"moss\.json: (cannot be read|damaged or of another program)"):
        read_card(folder)


def test_missing_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors; the checkpoint is incomplete"):
        load_generator(folder)


@pytest.mark.parametrize("kept", [0, 5, 1000])
def test_truncated_weights(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a readable safetensors file"):
        load_generator(folder)


def test_missing_unexpected_and_misshapen_tensors_are_all_listed(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    state["old.weight"] = state.pop("lm_heads.1.weight")
    state["emb_ext.0.weight"] = torch.zeros(11, 5)
    save_file(state, path)
    before = build_model(CONFIG)
    with pytest.raises(CheckpointError) as caught:
        load_weights(before, folder)
    assert str(caught.value).splitlines() == [
        f"{path}: weights of another model:",
        "  missing lm_heads.1.weight",
        "  unexpected old.weight",
        "  emb_ext.0.weight has shape (11, 5), the model (11, 32)",
    ]


def test_another_geometry(folder: Path) -> None:
    wider = dataclasses.replace(CONFIG, num_codebooks=4)
    with pytest.raises(CheckpointError, match=r"missing emb_ext\.3\.weight\n  missing lm_heads\.4\.weight"):
        load_weights(build_model(wider), folder)
