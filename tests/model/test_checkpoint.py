"""A generator's folder comes back bit for bit, and says what is wrong with it."""

import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moss.config.model import Template, TextTokenizerConfig, TextTokenizerKind
from moss.config.train import LoraConfig
from moss.errors import CheckpointError
from moss.model.build import build_model
from moss.model.checkpoint import ModelCard, load_generator, load_weights, read_card, save_generator, save_weights
from moss.model.lora import apply_lora, merge_state
from moss.model.safetensors_files import write_weights
from moss.sequence.templates import TEMPLATES
from tests.model.test_delay import CONFIG

TEMPLATE_HASH = TEMPLATES[CONFIG.template].hash

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
    with pytest.raises(CheckpointError, match="no moss.json, so this is not a checkpoint folder; name a step folder"):
        load_generator(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.update(format_version=9),
            "format version 9, this program reads 1 and 2; use the version of",
        ),
        (
            lambda c: c.update(architecture="cat"),
            "architecture 'cat' is not a generator; expected one of.*; choose",
        ),
        (
            lambda c: c.update(template={"name": "old", "hash": "123"}),
            rf"trained with prompt template old \(123\), this program has moss_tts_delay_v1 \({TEMPLATE_HASH}\); use",
        ),
        (
            lambda c: c["model"].update(num_layers="two", hiden_size=3),
            r"2 mistakes in the configuration:\n.*hiden_size: no such setting.*\n.*num_layers: expected a whole number",
        ),
        (
            lambda c: c.update(num_codebooks=16),
            "trained with 16 codebooks, but its settings say num_codebooks=3; restore",
        ),
        (lambda c: c.pop("text_tokenizer"), "damaged or of another program .'text_tokenizer'.; copy the checkpoint ag"),
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
    with pytest.raises(CheckpointError, match=r"moss\.json: (cannot be read|damaged or of another).*; copy the"):
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
    wider = build_model(dataclasses.replace(CONFIG, num_codebooks=4))
    with pytest.raises(
        CheckpointError, match=r"the checkpoint's num_codebooks is 3, the model's 4; set model\.num_codeb"
    ):
        load_weights(wider, folder)
    (folder / "moss.json").unlink()
    with pytest.raises(CheckpointError, match=r"missing emb_ext\.3\.weight\n  missing lm_heads\.4\.weight"):
        load_weights(wider, folder)
    other = build_model(dataclasses.replace(CONFIG, template=Template.moss_ttsd_v1))
    (folder / "moss.json").write_text(CARD.to_json())
    with pytest.raises(
        CheckpointError, match="template is moss_tts_delay_v1, the model's moss_ttsd_v1; set model.templ"
    ):
        load_weights(other, folder)


def test_a_card_of_the_first_format(folder: Path) -> None:
    content = json.loads((folder / "moss.json").read_text())
    content["format_version"] = 1
    del content["num_codebooks"], content["model"]["member"], content["model"]["template"]
    del content["model"]["unverified"]
    (folder / "moss.json").write_text(json.dumps(content))
    assert read_card(folder) == CARD


def test_an_unknown_audio_tokenizer(folder: Path) -> None:
    card = dataclasses.replace(CARD, tokenizer=None, tokenizer_config=None)
    (folder / "moss.json").write_text(card.to_json())
    assert read_card(folder) == card


def test_weights_take_the_dtype_that_is_asked_for(folder: Path) -> None:
    saved = load_file(folder / "model.safetensors")
    model, _ = load_generator(folder, dtype=torch.bfloat16)
    assert all(torch.equal(tensor, saved[name].bfloat16()) for name, tensor in model.state_dict().items())
    save_weights(model.state_dict(), folder)
    halved, _ = load_generator(folder)
    assert {parameter.dtype for parameter in halved.parameters()} == {torch.bfloat16}
    assert halved(torch.zeros(1, 3, 4, dtype=torch.long)).hidden.dtype == torch.bfloat16
    own = build_model(CONFIG)
    load_weights(own, folder)
    assert {parameter.dtype for parameter in own.parameters()} == {torch.float32}


def test_a_loaded_model_computes_what_the_saved_one_did(folder: Path) -> None:
    torch.manual_seed(0)
    saved = build_model(CONFIG).eval()
    tokens = torch.randint(0, 10, (1, 7, 4))
    with torch.no_grad():
        assert torch.equal(load_generator(folder)[0](tokens).hidden, saved(tokens).hidden)


def test_shards_load_like_one_file(folder: Path) -> None:
    whole = load_generator(folder)[0].state_dict()
    (folder / "model.safetensors").unlink()
    write_weights(folder, whole, max_shard_bytes=20_000)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    loaded = load_generator(folder)[0].state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in whole.items())


def test_adapters_are_merged_while_loading(folder: Path) -> None:
    torch.manual_seed(0)
    adapted = build_model(CONFIG).eval()
    apply_lora(adapted, LoraConfig(rank=2))
    for name, parameter in adapted.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)
    save_weights(adapted.state_dict(), folder)
    merged = merge_state(adapted.state_dict())
    loaded = load_generator(folder)[0].state_dict()
    assert loaded.keys() == merged.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in merged.items())


def test_what_was_saved_is_another_folder_with_the_tokenizer_in_it(folder: Path, tmp_path: Path) -> None:
    model, card = load_generator(folder)
    tokenizer = tmp_path / "some.json.gz"
    tokenizer.write_bytes(gzip.compress(b"{}"))
    card = dataclasses.replace(card, text_tokenizer=TextTokenizerConfig(kind=TextTokenizerKind.file, path=tokenizer))
    target = tmp_path / "new" / "saved"
    save_generator(model, card, target)
    tokenizer.unlink()
    moved = target.rename(tmp_path / "moved")
    assert read_card(moved).text_tokenizer.path == moved / "tokenizer.json"
    assert (moved / "tokenizer.json").read_text() == "{}"
    assert (moved / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="moved: exists already; choose another folder or delete it"):
        save_generator(model, card, moved)
    assert not list(tmp_path.rglob(".unfinished*"))
