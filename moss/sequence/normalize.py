"""The text normaliser of the Delay prompt: spacing, punctuation and markup, never the wording.

The work is one ordered table, `STAGES`. Spans that must survive untouched (addresses, handles, file names) are
exchanged for marks first and put back last, so that the rules in between cannot damage them.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

# Character classes, to be used inside [...].
IDEOGRAPH = "\u3400-\u4dbf\u4e00-\u9fff\u3040-\u30ff"  # scripts written without blanks: Han and kana
LETTER = "A-Za-z"
ALNUM = "A-Za-z0-9"
WORD = "A-Za-z0-9_"
PATH = "A-Za-z0-9._/+:-"  # what file names, versions and units are made of
# Letters, stress and length marks, tones and diacritics of IPA that the spelling of a word seldom has.
PHONETIC = "\u00e6\u00f0\u00f8\u0127\u014b\u0153\u0250-\u036f\u03b2\u03b8\u03c7\u1d00-\u1dbf\u2016\u203f\ua71b\ua71c"
SENTENCE_END = "。！？!?；;"
STOPS = "，。！？；：、"
CLOSERS = "”’」』】）》"
OPENERS = "（【「『《“‘"
FRAME_OPEN = "【〖『「"
FRAME_CLOSE = "】〗』」"
DASH = "—–―-"
ARROW = "→←↔⇒⇐⇔⟶⟵⟷⟹⟸⟺↦↤↪↩"

MARK = r"___PROT\d+___"
"""Pattern of a mark. Its letters and underscores are observable: they count as a Latin word for the spacing rules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One substitution: every match of `pattern` becomes `replacement`, in `rounds` passes."""

    name: str
    pattern: re.Pattern[str]
    replacement: str | Callable[[re.Match[str]], str]
    rounds: int = 1

    def apply(self, text: str) -> str:
        """Return `text` with the rule applied."""
        for _ in range(self.rounds):
            text = self.pattern.sub(self.replacement, text)
        return text


def _rule(name: str, pattern: str, replacement: str | Callable[[re.Match[str]], str], rounds: int = 1) -> Rule:
    return Rule(name=name, pattern=re.compile(pattern), replacement=replacement, rounds=rounds)


def _marks_of_emotion(match: re.Match[str]) -> str:
    """A run of question and exclamation marks says each of the two once, the question first."""
    run = match.group()
    return "？" * any(mark in "?？" for mark in run) + "！" * any(mark in "!！" for mark in run)


LINK = _rule("markdown link", r"\[([^\[\]]+)\]\((https?://[^)\s]+)\)", r"\1 \2")
LINE_PREFIX = re.compile(r"(?:#{1,6}\s+)?(?:>\s+)?(?:[-*+]\s+)?(?:\d+[.)]\s+)?")
"""Heading, quote, bullet, number: each at most once and in this order."""

PROTECTED: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("web address", r"https?://[^\s，。！？；、）】》〉」』]+"),
        ("e-mail", rf"(?<![\w.+-])[{ALNUM}._%+-]+@[{ALNUM}.-]+\.[{LETTER}]{{2,}}(?![\w.-])"),
        ("mention", rf"(?<![{WORD}])@[{WORD}]{{1,32}}"),
        ("subreddit or user", rf"(?<![{WORD}])[ru]/[{WORD}]+"),
        ("hashtag", rf"(?<![{WORD}])#[^\s#]+"),
        ("dot file", rf"(?<![{WORD}])\.(?=[._-]*[{ALNUM}])[{ALNUM}._-]+"),
        (
            "file, version, path",
            rf"(?<![{WORD}])(?=[{PATH}]*[{LETTER}])(?=[{ALNUM}]+[._/+:-])[{ALNUM}][{PATH}]*(?<=[{ALNUM}])(?![{WORD}])",
        ),
    )
)
"""Spans kept as they are, in the order in which they claim text."""

SPOKEN = re.compile(
    # A pause; or IPA: between slashes, with a sign that only phonetic alphabets have, and neither path nor address.
    r"\[ *pause +\d+(?:\.\d+)? *s *\]"
    rf"|(?<![/:])/(?! )(?=[^/]*[{PHONETIC}])[^/\n{IDEOGRAPH}{STOPS}]{{1,120}}(?<! )/(?![{ALNUM}/])"
)
"""Spans that say how something is spoken; the published normaliser rewrites dots, dashes and blanks within."""
_FIRST_MARK, _MARKS = 0xF0000, 0xFFFE
"""Private characters that take the place of such spans: no rule knows them, and no other is left in a text by then."""

SPACING = (
    _rule("blanks to one space", r"[ \t]+", " "),
    _rule(
        "no blank between ideographs, nor between ideograph and digit",
        rf"(?<=[{IDEOGRAPH}])\s+(?=[{IDEOGRAPH}\d])|(?<=\d)\s+(?=[{IDEOGRAPH}])",
        "",
    ),
    _rule(
        "space from ideograph to Latin",
        rf"(?<=[{IDEOGRAPH}])(?={MARK}|[{LETTER}]|[0-9][{PATH}]*[{LETTER}])",
        " ",
    ),
    _rule("space from Latin to ideograph", rf"({MARK}|[{LETTER}][{PATH}]*)(?=[{IDEOGRAPH}])", r"\1 "),
    _rule(
        "no blank before a stop or closer, nor after a full-width stop or opener",
        rf"\s+(?=[{STOPS}{CLOSERS},.;!?])|(?<=[{STOPS}{OPENERS}])\s+",
        "",
    ),
    _rule("no blank at the ends", r"\A\s+|\s+\Z", ""),
)

STRUCTURE = (
    _rule(
        "framed phrase at a sentence start is a sentence",  # two rounds, because one match eats the next one's start
        rf"(\A|[{SENTENCE_END}]\s*)[{FRAME_OPEN}]([^{FRAME_CLOSE}]+)[{FRAME_CLOSE}]\s*",
        r"\1\2。",
        rounds=2,
    ),
    _rule(
        "title standing alone loses its brackets",
        rf"(\A|[{SENTENCE_END}]\s*)《([^》]+)》(?=\s*(?:{MARK}|[{DASH}]{{2,}}|\Z|[{SENTENCE_END}，,]))",
        r"\1\2",
    ),
    _rule("arrow is a comma", rf"\s*(?:<?[-=]+>|<[-=]+|[{ARROW}])\s*", "，"),
    _rule("long dash ends the sentence", rf"\s*[{DASH}]{{2,}}\s*", "。"),
)

REPEATS = (
    _rule("ellipsis ends the sentence", r"\.{3,}|…{2,}", "。"),
    _rule("one full stop", r"[。．]{2,}", "。"),
    _rule("one comma", r"[，,]{2,}", "，"),
    _rule("one question, one exclamation", r"[?？!！]{2,}", _marks_of_emotion),
)

STAGES: tuple[Rule, ...] = (*SPACING, *STRUCTURE, *REPEATS, *SPACING)


def normalize_tts_text(text: str, *, reference: bool = False) -> str:
    """Clean the text of a Delay request: blanks, markup, stops; words and numbers stay as written.

    Pinyin with tone numbers or marks keeps its letters; between Latin letters and ideographs there is one blank. What
    stands in `/IPA/` and `[pause 1.5s]` is not touched; with `reference` the rules reach into it, as published.

    A protected span inside another one (a mention within a hashtag, an address within a path) is put back whole; the
    published normaliser leaves the literal `___PROT0___` in its place, and so does this one with `reference`.

    Args:
        text: anything, in any script, on any number of lines.
        reference: behave like the published normaliser where it is wrong or goes too far.

    Returns:
        One line without blanks at its ends; empty if nothing speakable is left.

    Source: MOSS-TTS moss_tts_delay/tts_robust_normalizer_single_script.py @58b20a0 (same results, own rules).
    """
    text, spoken = _join_lines(_drop_controls(text)), dict[int, str]()
    if not reference:
        text, spoken = _set_aside(text)
    text, spans = _protect(text)
    for rule in STAGES:
        text = rule.apply(text)
    return _restore(text, spans, innermost_last=not reference).translate(spoken)


def _drop_controls(text: str) -> str:
    """Unify line ends and the full-width space; drop every other control, format and unassigned character."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u3000", " ")
    return "".join(char for char in text if char in "\n\t" or not unicodedata.category(char).startswith("C"))


def _join_lines(text: str) -> str:
    """Unwrap markdown and put all lines into one, each but the last closed by a full-width stop."""
    lines = (line.strip() for line in LINK.apply(text).splitlines())
    return "。".join(LINE_PREFIX.sub("", line, count=1) for line in lines if line)


def _set_aside(text: str) -> tuple[str, dict[int, str]]:
    """Exchange what says how something is spoken for marks; the spans by mark, for `str.translate`."""
    spans: dict[int, str] = {}

    def claim(match: re.Match[str]) -> str:
        mark = _FIRST_MARK + len(spans)
        spans[mark] = match.group()
        return chr(mark)

    return SPOKEN.sub(claim, text, count=_MARKS), spans


def _protect(text: str) -> tuple[str, list[str]]:
    """Exchange protected spans for numbered marks; span i belongs to mark i."""
    spans: list[str] = []

    def claim(match: re.Match[str]) -> str:
        spans.append(match.group())
        return f"___PROT{len(spans) - 1}___"

    for _, pattern in PROTECTED:
        text = pattern.sub(claim, text)
    return text, spans


def _restore(text: str, spans: list[str], *, innermost_last: bool) -> str:
    """Put the spans back. A span can only hold marks of a lower number, so high to low reaches nested ones too."""
    numbered = list(enumerate(spans))
    for number, span in reversed(numbered) if innermost_last else numbered:
        text = text.replace(f"___PROT{number}___", span)
    return text
