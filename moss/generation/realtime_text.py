"""Text that arrives in pieces: ids are released as soon as no later character can change them."""

import logging
import unicodedata
from collections.abc import Callable

logger = logging.getLogger(__name__)

_APOSTROPHES = "'\u2019"


def stable_end(text: str) -> int:
    """How many leading characters of a text keep their ids whatever follows.

    Byte-level BPEs split a text before they merge, and never inside of: a character that is no white space followed by
    a space; a letter followed by a punctuation mark or symbol other than an apostrophe. The last such place is taken.
    A text without any (one unfinished word; Chinese without punctuation) has none.
    """
    for index in range(len(text) - 1, 0, -1):
        before, after = text[index - 1], text[index]
        if after == " " and not before.isspace():
            return index
        if before.isalpha() and after not in _APOSTROPHES and unicodedata.category(after)[0] in "PS":
            return index
    return 0


class TextPieces:
    """Turns pieces of a text, cut anywhere, into the ids of the whole text.

    Args:
        encode: Plain text to ids.
    """

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self._encode = encode
        self._whole = self._rest = ""
        self._ids: list[int] = []

    def push(self, piece: str) -> list[int]:
        """Add a piece; the ids that became certain."""
        self._whole += piece
        self._rest += piece
        return self._release(stable_end(self._rest))

    def end(self) -> list[int]:
        """The ids of what is left; the next piece starts a new text."""
        ids = self._release(len(self._rest))
        if self._ids != self._encode(self._whole):
            logger.warning(
                "the text tokenizer splits across words, so this text has other ids in pieces than as a whole; "
                "push tokens instead of text to be exact: %r",
                self._whole[:60],
            )
        self._whole, self._ids = "", []
        return ids

    def _release(self, end: int) -> list[int]:
        ids = self._encode(self._rest[:end]) if end else []
        self._rest = self._rest[end:]
        self._ids += ids
        return ids
