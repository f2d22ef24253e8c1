"""Cutting a long text into pieces that one request can speak: at sentence ends, else at commas, else at blanks.

Never within `[pause 1.5s]` or another bracketed tag, /IPA/, or an address.
"""

import bisect
import itertools
import re
import unicodedata
from collections.abc import Callable, Sequence

from moss.errors import DataError
from moss.sequence.dialogue import speaker_turns

_CLOSERS = "\"'”’»)\\]）】》〉」』"
_WHOLE = re.compile(
    r"\[[^\[\]\n]{1,60}\]"  # tags
    r"|(?<![A-Za-z0-9/])/[^/\s](?:[^/\n]{0,120}[^/\s])?/(?![A-Za-z0-9/])"  # IPA
    r"|(?:https?://|www\.)[^\s，。！？；、）】》〉」』]*[^\s，。！？；、）】》〉」』.,!?;:'\")\]]"  # addresses
)
_SENTENCE_END = re.compile(rf"(?:[.!?…؟۔।]+[{_CLOSERS}]*(?=\s|\Z)|[。！？；…]+[{_CLOSERS}]*|\n)")
_CLAUSE_END = re.compile(rf"(?:[,;:،؛—–]+[{_CLOSERS}]*(?=\s)|[，、；：]+[{_CLOSERS}]*)")
_BLANK = re.compile(r"\s+")
_UNSPACED = re.compile(  # Han, kana, Thai, Lao, Burmese, Khmer: written without blanks
    "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\U00020000-\U0003134f]"
)
_NEVER_FIRST = set("，。！？；：、…—”’」』】）》〉,.!?;:)]")
_NEVER_LAST = set("“‘「『【（《〈([")
_ABBREVIATION = re.compile(r"(?:\b[A-Z]|\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|No|vs|e\.g|i\.e|approx|Fig))\.\Z")


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the blanks between them."""
    edges = [0, *_cuts(text, _sentence_ends), len(text)]
    return [piece for start, end in itertools.pairwise(edges) if (piece := text[start:end].strip())]


def split_sentences(text: str, max_chars: int) -> list[str]:
    """Cut a text into pieces of as many whole sentences as fit.

    A sentence that is too long is cut at commas, then at blanks, then, in scripts without blanks, between any two
    characters. A single word, tag or address that is too long stays whole.

    Args:
        text: Any script.
        max_chars: Longest piece in characters.

    Returns:
        Pieces in order, without blanks at their ends; none for a text without words.

    Raises:
        DataError: `max_chars` is not positive.
    """
    if max_chars < 1:
        raise DataError(f"max_chars={max_chars}; a piece needs at least one character")
    cuts = [_cuts(text, level) for level in _LEVELS]
    spans = _fit(text, 0, len(text), max_chars, cuts)
    return [piece for start, end in spans if (piece := text[start:end].strip())]


def split_turns(dialogue: str, max_chars: int) -> list[str]:
    """Cut a dialogue into pieces of as many whole turns as fit; each begins with a speaker tag.

    A turn that is too long is cut like a text and its tag repeated. A piece need not have all speakers: put the
    clips' transcripts in front with `dialogue_text`.

    Args:
        dialogue: With speaker tags.
        max_chars: Longest piece in characters, tags included.

    Raises:
        DataError: No tag, words before the first one, or no room for words beside a tag.
    """
    pieces: list[str] = []
    for number, words in speaker_turns(dialogue):
        tag = f"[S{number}]"
        if max_chars <= len(tag):
            raise DataError(f"max_chars={max_chars} leaves no room for words beside the tag {tag}; raise it")
        for part in split_sentences(words, max_chars - len(tag)):
            turn = f"{tag}{part}"
            if pieces and len(pieces[-1]) + len(turn) <= max_chars:
                pieces[-1] += turn
            else:
                pieces.append(turn)
    return pieces


def _sentence_ends(text: str) -> list[int]:
    ends = []
    for match in _SENTENCE_END.finditer(text):
        following = text[match.end() :].lstrip()
        abbreviated = match.group() == "." and _ABBREVIATION.search(text[max(0, match.start() - 8) : match.end()])
        if not abbreviated and not following[:1].islower():
            ends.append(match.end())
    return ends


def _clause_ends(text: str) -> list[int]:
    return [match.end() for match in _CLAUSE_END.finditer(text)]


def _blanks(text: str) -> list[int]:
    return [match.start() for match in _BLANK.finditer(text)]


def _characters(text: str) -> list[int]:
    """Between two characters of which one belongs to a script without blanks; a mark stays with its base."""
    return [
        index
        for index in range(1, len(text))
        if (_UNSPACED.match(text[index]) or _UNSPACED.match(text[index - 1]))
        and not unicodedata.category(text[index]).startswith("M")
        and text[index] not in _NEVER_FIRST
        and text[index - 1] not in _NEVER_LAST
    ]


_LEVELS: Sequence[Callable[[str], list[int]]] = (_sentence_ends, _clause_ends, _blanks, _characters)
"""Where a text may be cut, best first."""


def _cuts(text: str, level: Callable[[str], list[int]]) -> list[int]:
    """The places of a level that lie within nothing that must stay whole."""
    whole = [match.span() for match in _WHOLE.finditer(text)]
    starts = [start for start, _ in whole]
    cuts = []
    for cut in level(text):
        before = bisect.bisect_left(starts, cut) - 1  # the last whole span that begins in front of the cut
        if before < 0 or whole[before][1] <= cut:
            cuts.append(cut)
    return cuts


def _fit(text: str, start: int, end: int, max_chars: int, cuts: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Spans of text[start:end] that fit, cut at the first of `cuts` or, where that is not enough, at a later one."""
    if not cuts or len(text[start:end].strip()) <= max_chars:
        return [(start, end)]
    here = cuts[0][bisect.bisect_right(cuts[0], start) : bisect.bisect_left(cuts[0], end)]
    spans: list[tuple[int, int]] = []
    for left, right in itertools.pairwise([start, *here, end]):
        for span in _fit(text, left, right, max_chars, cuts[1:]):
            if spans and len(text[spans[-1][0] : span[1]].strip()) <= max_chars:
                spans[-1] = (spans[-1][0], span[1])
            else:
                spans.append(span)
    return spans
