"""The tokenizer.json of an exported model gives the ids that the model was trained with."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from moss.config.compose import load_config
from moss.config.model import (
    LocalV15ModelConfig,
    ModelConfig,
    RealtimeModelConfig,
    TextTokenizerConfig,
    TextTokenizerKind,
)
from moss.config.train import TrainConfig
from moss.data.text_tokenizer import COMPACT_ASSET, FileTextTokenizer, build_text_tokenizer
from moss.model.build import build_model
from moss.model.checkpoint import ModelCard, save_generator
from moss.model.convert import export_folder
from moss.model.exported_tokenizer import control_strings, merges_of, tokenizer_json

COMPACT, QWEN = (TextTokenizerConfig(kind=kind) for kind in (TextTokenizerKind.compact, TextTokenizerKind.qwen))
TEXTS = [
    "Hello, world! It's 2024; we'll see.",
    "user\n- Text:\nNone\n- Language:\nEnglish",
    "你好，世界。テスト",
    "  two  spaces\n\n\tand a tab ",
    "nai\u0308ve caf\u00e9 \U0001f642\u200d",
    "",
    "a" * 300,
]


def preset(name: str, **changes: Any) -> Any:
    model = load_config(TrainConfig, "train", [f"model={name}", "data.shards=[unused]"]).model
    return dataclasses.replace(model, **changes)


def loaded(content: str, folder: Path) -> PreTrainedTokenizerFast:
    (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def check_ids(theirs: PreTrainedTokenizerFast, kind: TextTokenizerConfig, config: ModelConfig) -> None:
    ours = build_text_tokenizer(kind)
    for text in TEXTS:
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text), text
    for index, string in control_strings(config).items():
        assert theirs.convert_tokens_to_ids(string) == index
        assert theirs.convert_ids_to_tokens(index) == string
        assert theirs.encode(f"a{string}", add_special_tokens=False) == [*ours.encode("a"), index]


@pytest.mark.parametrize("name", ["delay_xs", "local_v15_xs", "realtime_xs"])
def test_the_compact_one(name: str, tmp_path: Path) -> None:
    config = preset(name)
    content = tokenizer_json(COMPACT, config)
    assert content is not None
    check_ids(loaded(content, tmp_path), COMPACT, config)
    asset = Path(__file__).parents[2] / "moss" / "data" / "assets" / COMPACT_ASSET
    # Where the strings stand where they should, it is the asset itself, which has its fingerprint.
    assert (content == asset.read_text(encoding="utf-8")) == (not isinstance(config, RealtimeModelConfig))
    if isinstance(config, RealtimeModelConfig):
        assert control_strings(config)[config.text_pad_token_id] == "<|text_pad|>"
        assert control_strings(config)[config.reference_audio_pad_token_id] == "<|audio_pad|>"


def test_control_tokens_elsewhere(tmp_path: Path) -> None:
    ids = {"im_start_token_id": 1050, "audio_end_token_id": 1018, "im_end_token_id": 1017}
    config = preset("delay_xs", vocab_size=1100, **ids)
    content = tokenizer_json(COMPACT, config)
    assert content is not None
    check_ids(loaded(content, tmp_path), COMPACT, config)
    added = json.loads(content)["added_tokens"]
    assert [token["id"] for token in added] == list(range(1016, 1051)), "without gaps"
    assert len({token["content"] for token in added}) == len(added)


def test_the_published_one(tmp_path: Path) -> None:
    config = LocalV15ModelConfig()
    content = tokenizer_json(QWEN, config)
    assert content is not None
    assert len(json.loads(content)["model"]["merges"]) == 151_387, "as in the published file"
    check_ids(loaded(content, tmp_path), QWEN, config)


def test_merges_of_a_small_vocabulary() -> None:
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"ab": 3, b"bc": 4, b"abc": 5, b"cab": 6, b"xy": 7, b"abbc": 8}
    # "xy" is made of two entries that are not there, "abbc" of two that are made before.
    pairs = [(b"a", b"b"), (b"b", b"c"), (b"ab", b"c"), (b"c", b"ab"), (b"x", b"y"), (b"ab", b"bc")]
    assert list(merges_of(ranks)) == pairs


def test_text_ids_that_are_not_the_models(tmp_path: Path) -> None:
    assert tokenizer_json(QWEN, preset("delay_xs")) is None
    assert tokenizer_json(COMPACT, preset("delay_xs", pad_token_id=5)) is None
    given = tmp_path / "given.json"
    given.write_text('{"any": "é"}\n', encoding="utf-8")
    file = TextTokenizerConfig(kind=TextTokenizerKind.file, path=given)
    assert tokenizer_json(file, preset("delay_xs")) == '{"any": "é"}\n'


def test_an_exported_run_brings_its_text_tokenizer(tmp_path: Path) -> None:
    config = preset("delay_xs", hidden_size=32, num_layers=1, intermediate_size=16, head_dim=8, num_codebooks=2)
    card = ModelCard(
        model=config, text_tokenizer=COMPACT, text_fingerprint="f", tokenizer=None, tokenizer_config=None, step=1
    )
    save_generator(build_model(config), card, tmp_path / "ours")
    missing = export_folder(tmp_path / "ours", tmp_path / "exported")
    assert all(name.endswith(".py") for name in missing)
    check_ids(PreTrainedTokenizerFast.from_pretrained(tmp_path / "exported"), COMPACT, config)
    fingerprint = FileTextTokenizer(tmp_path / "exported" / "tokenizer.json").fingerprint
    assert fingerprint == build_text_tokenizer(COMPACT).fingerprint
