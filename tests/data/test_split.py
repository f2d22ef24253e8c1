import hashlib

import pytest

from moss.data.split import HELDOUT, TRAIN, is_heldout, normalised_text, split_of
from moss.errors import DataError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,  World!", "hello world"),
        ("don't - stop.", "don't stop"),
        ("Ça va… 你好!", "ça va 你好"),
        ("...", ""),
        ("", ""),
    ],
)
def test_normalised_text(text, expected):
    assert normalised_text(text) == expected


def test_the_split_follows_the_documented_formula():
    for number in range(200):
        text = f"sentence {number}"
        value = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 10_000
        assert is_heldout(text, 0.3) == (value < 3000)


def test_spelling_does_not_move_a_text_to_the_other_part():
    texts = [f"Sentence number {number}" for number in range(300)]
    for text in texts:
        assert split_of(text) == split_of(f"  {text.upper()}!! ")
    held_out = sum(is_heldout(text) for text in texts)
    assert 40 < held_out < 80


def test_fractions_nest_and_reach_the_ends():
    texts = [f"Sentence number {number}" for number in range(300)]
    assert {t for t in texts if is_heldout(t, 0.1)} < {t for t in texts if is_heldout(t, 0.5)}
    assert {split_of(t, 0.0) for t in texts} == {TRAIN}
    assert {split_of(t, 1.0) for t in texts} == {HELDOUT}


@pytest.mark.parametrize("frac", [-0.1, 1.1, float("nan")])
def test_a_fraction_outside_is_refused(frac):
    with pytest.raises(DataError, match=r"heldout_frac=.* is outside 0\.\.1"):
        is_heldout("a", frac)
