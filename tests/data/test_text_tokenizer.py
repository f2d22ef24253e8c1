"""Text ids: a plain text never becomes a control token, and fingerprints tell tokenizers apart."""

import gzip
import json
from importlib.resources import files
from pathlib import Path

import pytest

from moss.config.model import TextTokenizerConfig, TextTokenizerKind
from moss.data.compact_bpe import train_compact_bpe
from moss.data.text_tokenizer import COMPACT_ASSET, FileTextTokenizer, TextTokenizer, build_text_tokenizer
from moss.errors import DataError
from moss.sequence.prompt import UserPrompt, user_message
from moss.spec import SPECIAL_TOKEN_STRINGS, SpecialTokens


def build(kind: str, path: Path | None = None) -> TextTokenizer:
    return build_text_tokenizer(TextTokenizerConfig(kind=TextTokenizerKind(kind), path=path))


@pytest.mark.parametrize("kind", ["qwen", "compact"])
def test_control_strings_in_a_text_are_spelt_out(kind: str) -> None:
    bpe = build(kind)
    control = {getattr(bpe.special_tokens, name) for name in bpe.special_tokens.used}
    assert len(control) == 8
    assert not any(bpe.is_text_id(text_id) for text_id in control)
    assert max(control) < bpe.vocab_size
    for string in SPECIAL_TOKEN_STRINGS.values():
        ids = bpe.encode(f"a{string}b {string}")
        assert not control & set(ids)
        assert max(ids) < bpe.vocab_size
        assert all(bpe.is_text_id(text_id) for text_id in ids)


def test_qwen_ids_are_the_published_ones() -> None:
    bpe = build("qwen")
    assert bpe.encode("Hello, world!") == [9707, 11, 1879, 0]
    assert bpe.encode("1234") == [16, 17, 18, 19]
    assert bpe.encode("e\u0301") == bpe.encode("é")
    assert bpe.special_tokens == SpecialTokens()
    assert bpe.fingerprint == build("qwen").fingerprint != build("compact").fingerprint


@pytest.mark.parametrize("text", ["", "Press one.", "déjà vu 你好 🙂", "a\nb\t c", "\u200b"])
def test_compact_spells_every_text(text: str) -> None:
    asset = json.loads((files("moss.data") / "assets" / COMPACT_ASSET).read_text())
    pieces = {i: piece for piece, i in asset["model"]["vocab"].items()}
    from tokenizers.decoders import ByteLevel

    assert ByteLevel().decode([pieces[i] for i in build("compact").encode(text)]) == text


def test_compact_template_is_short_and_turns_are_whole() -> None:
    bpe = build("compact")
    (prompt,) = user_message(UserPrompt(text="", language="English")).segments
    assert isinstance(prompt, str)
    assert len(bpe.encode(prompt)) <= 20
    # The decode loop counts on "assistant" and its newline being two ids.
    assert len(bpe.encode("assistant\n")) == len(build("qwen").encode("assistant\n")) == 2


def test_a_file_with_the_control_tokens_is_enough(tmp_path: Path) -> None:
    content = train_compact_bpe(["one two three", "two three four"], 400)
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    plain = build("file", path)
    assert isinstance(plain, FileTextTokenizer)
    assert plain.vocab_size <= 400
    assert len({getattr(plain.special_tokens, name) for name in plain.special_tokens.used}) == 8
    packed = tmp_path / "tokenizer.json.gz"
    packed.write_bytes(gzip.compress(content.encode()))
    assert build("file", packed).fingerprint == plain.fingerprint
    path.write_text(train_compact_bpe(["five six seven"], 400))
    assert build("file", path).fingerprint != plain.fingerprint


@pytest.mark.parametrize("kind", ["qwen", "compact"])
def test_text_ids_end_where_control_tokens_begin(kind: str) -> None:
    bpe = build(kind)
    first = bpe.special_tokens.pad
    assert [bpe.is_text_id(text_id) for text_id in (-1, 0, first - 1, first, bpe.vocab_size)] == [
        False, True, True, False, False,
    ]  # fmt: skip


def test_added_tokens_are_spelt_out_even_if_the_file_does_not_call_them_special(tmp_path: Path) -> None:
    content = json.loads(train_compact_bpe(["one two three"], 400))
    for token in content["added_tokens"]:
        token["special"] = False
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    bpe = build("file", path)
    slot = bpe.special_tokens.gen_slot
    assert slot is not None
    assert bpe.encode("<|audio_assistant_gen_slot|>") != [slot]
    assert all(bpe.is_text_id(text_id) for text_id in bpe.encode("one <|audio_assistant_gen_slot|> two<|im_end|>"))


@pytest.mark.parametrize("content", [None, b"{}", b"\xff\xfe", b"not json"])
def test_a_file_that_is_no_tokenizer(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.json: cannot be read as a tokenizer\.json \("):
        build("file", path)


def test_a_missing_control_token_is_named(tmp_path: Path) -> None:
    content = json.loads(train_compact_bpe(["one two"], 400))
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "<|audio_end|>"]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"has no token <\|audio_end\|>, needed as audio_end"):
        _ = build("file", path).special_tokens
