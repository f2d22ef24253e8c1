import string

import pytest

from moss.errors import EvaluationError
from moss.evaluation.metrics.wer import CHINESE_PUNCTUATION, normalise, num_tokens, word_errors


def test_punctuation_list_is_the_82_code_points():
    assert len(CHINESE_PUNCTUATION) == len(set(CHINESE_PUNCTUATION)) == 82
    assert not set(CHINESE_PUNCTUATION) & set(string.printable)


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Don't, don’t!", "en", "don't dont"),
        ("a well-known fact", "en", "a wellknown fact"),
        ("one , two", "en", "one two"),
        ("one  ,  ,  two", "en", "one   two"),  # one pass over pairs of blanks, as the reference does
        ("Été à Paris.", "fr", "été à paris"),
        ("你好，World", "zh", "你 好 W o r l d"),
    ],
)
def test_normaliser(text, language, expected):
    assert normalise(text, language) == expected


def test_edits_spell_out_the_alignment():
    found = word_errors("the quick brown fox jumps", "a quick fox jumps high", "en")
    assert [(edit.kind, edit.reference, edit.hypothesis) for edit in found.edits] == [
        ("substitute", ("the",), ("a",)),
        ("equal", ("quick",), ("quick",)),
        ("delete", ("brown",), ()),
        ("equal", ("fox", "jumps"), ("fox", "jumps")),
        ("insert", (), ("high",)),
    ]
    assert (found.hits, found.substitutions, found.deletions, found.insertions) == (3, 1, 1, 1)
    assert found.wer == 0.6


def test_rate_is_not_clipped():
    assert word_errors("stop", "please do not stop here", "en").wer == 4.0


@pytest.mark.parametrize("text", ["", "...", "  ", "\t", "？！"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_text_without_words_is_invalid(text, language):
    assert num_tokens(text, language) == 0
    with pytest.raises(EvaluationError, match="invalid_ref.*empty after normalisation"):
        word_errors(text, "hello", language)
