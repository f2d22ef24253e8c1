"""Word and character error rates under the Seed-TTS-eval normaliser.

The rules are reproduced exactly, oddities included: punctuation is deleted rather than replaced by a blank (so
"well-known" becomes one word), curly apostrophes go while straight ones stay, digits are not spelt out, and Chinese
is split into code points without lower-casing. A single U+0020 separates tokens; no other white space does.
"""

import re
import string
from dataclasses import dataclass
from typing import Literal, cast

from moss.errors import EvaluationError

CHINESE_PUNCTUATION = (
    "\uff02\uff03\uff04\uff05\uff06\uff07\uff08\uff09\uff0a\uff0b\uff0c\uff0d\uff0f\uff1a\uff1b\uff1c\uff1d\uff1e"
    "\uff20\uff3b\uff3c\uff3d\uff3e\uff3f\uff40\uff5b\uff5c\uff5d\uff5e\uff5f\uff60\uff62\uff63\uff64\u3000\u3001"
    "\u3003\u3008\u3009\u300a\u300b\u300c\u300d\u300e\u300f\u3010\u3011\u3014\u3015\u3016\u3017\u3018\u3019\u301a"
    "\u301b\u301c\u301d\u301e\u301f\u3030\u303e\u303f\u2013\u2014\u2018\u2019\u201b\u201c\u201d\u201e\u201f\u2026"
    "\u2027\ufe4f\ufe51\ufe54\u00b7\uff0e\uff01\uff1f\uff61\u3002"
)
"""The 82 code points that zhon >= 2.0 calls punctuation, written out so that a new zhon cannot move a score."""

_DELETED = str.maketrans("", "", (CHINESE_PUNCTUATION + string.punctuation).replace("'", ""))

CHARACTER_LANGUAGES = frozenset({"zh"})
"""Languages scored by character; every other one is scored by word and lower-cased."""

EditKind = Literal["equal", "substitute", "delete", "insert"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A run of tokens with the same fate; `delete` has no hypothesis tokens, `insert` no reference tokens."""

    kind: EditKind
    reference: tuple[str, ...]
    hypothesis: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WordErrors:
    """Outcome of one comparison; counts follow one optimal alignment."""

    reference_norm: str
    hypothesis_norm: str
    hits: int
    substitutions: int
    deletions: int
    insertions: int
    edits: tuple[Edit, ...]

    @property
    def num_reference_tokens(self) -> int:
        """Tokens of the normalised reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def num_errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float:
        """Errors per reference token, not clipped: a talkative hypothesis scores above 1."""
        return self.num_errors / self.num_reference_tokens


def normalise(text: str, language: str) -> str:
    """Normalise a reference or a hypothesis for comparison.

    Args:
        text: Any text.
        language: "zh" for characters separated by blanks; any other code for lower-cased words.

    Source: seed-tts-eval run_wer.py:31-51 @752f429.
    """
    text = text.translate(_DELETED).replace("  ", " ")
    return " ".join(text) if language in CHARACTER_LANGUAGES else text.lower()


def simplify_chinese(text: str) -> str:
    """Fold traditional characters of a Chinese *hypothesis*; the reference is never folded.

    Source: seed-tts-eval run_wer.py:96 @752f429 (zhconv 'zh-cn').
    """
    import zhconv

    simplified: str = zhconv.convert(text, "zh-cn")
    return simplified


def num_tokens(text: str, language: str) -> int:
    """Tokens that the rate of a reference text is counted over; 0 when nothing is left after normalisation.

    Source: jiwer 3 and 4 default transforms (RemoveMultipleSpaces, Strip, split on U+0020, empty tokens dropped).
    """
    squeezed = re.sub(r"\s\s+", " ", normalise(text, language)).strip()
    return sum(1 for token in squeezed.split(" ") if token)


def word_errors(reference: str, hypothesis: str, language: str) -> WordErrors:
    """Compare a hypothesis with its reference text.

    Args:
        reference: The text that should have been spoken.
        hypothesis: What the recogniser heard; Chinese is folded to simplified characters here.
        language: Language code of both.

    Raises:
        EvaluationError: nothing of the reference is left after normalisation, so no rate exists.

    Source: seed-tts-eval run_wer.py:32-61 @752f429.
    """
    import jiwer

    if language in CHARACTER_LANGUAGES:
        hypothesis = simplify_chinese(hypothesis)
    reference_norm, hypothesis_norm = normalise(reference, language), normalise(hypothesis, language)
    if num_tokens(reference, language) == 0:
        raise EvaluationError(
            f"invalid_ref: the reference {reference!r} is empty after normalisation, so it has no error rate; "
            "give the utterance a text or leave it out of the list"
        )
    output = jiwer.process_words(reference_norm, hypothesis_norm)
    spoken, heard = output.references[0], output.hypotheses[0]
    edits = tuple(
        Edit(
            kind=cast(EditKind, chunk.type),
            reference=tuple(spoken[chunk.ref_start_idx : chunk.ref_end_idx]),
            hypothesis=tuple(heard[chunk.hyp_start_idx : chunk.hyp_end_idx]),
        )
        for chunk in output.alignments[0]
    )
    return WordErrors(
        reference_norm=reference_norm,
        hypothesis_norm=hypothesis_norm,
        hits=output.hits,
        substitutions=output.substitutions,
        deletions=output.deletions,
        insertions=output.insertions,
        edits=edits,
    )
