"""Text in pieces: where it may be cut, and that its ids are those of the whole."""

import logging

import pytest

from moss.config.model import TextTokenizerConfig, TextTokenizerKind
from moss.data.text_tokenizer import TextTokenizer, build_text_tokenizer
from moss.generation.realtime_text import TextPieces, stable_end

TEXTS = [
    "Well, press the star key (twice), or don't: then wait for the tone\u2014and say your name. It costs 3.50 today!",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff01ok?",
    "two  spaces,\ttab\n\nline. \n End...  ",
    "cafe\u0301 a\u0300 la re\u0301gence",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e\u0964 \U0001f600 ok!",
    "U.S. e.g. http://a.b/c?d=1 'quoted' it\u2019s 5%-off +=+ x_y",
]


@pytest.fixture(scope="module", params=[TextTokenizerKind.compact, TextTokenizerKind.qwen])
def tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    return build_text_tokenizer(TextTokenizerConfig(kind=request.param))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_ids_are_those_of_the_whole(
    tokenizer: TextTokenizer, text: str, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    pieces, ids = TextPieces(tokenizer.encode), []
    for start in range(0, len(text), size):
        ids += pieces.push(text[start : start + size])
    early = len(ids)
    ids += pieces.end()
    assert ids == tokenizer.encode(text)
    assert 0 < early < len(ids)
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "released"),
    [
        ("Hello", 0),
        ("Hello ", 5),
        ("Hello wor", 5),
        ("Hello,", 5),
        ("don't", 0),
        ("it\u2019s", 0),
        ("3.5", 0),
        ("\u4f60\u597d\u4e16", 0),
        ("\u4f60\u597d\uff0c", 2),
        (" ", 0),
        ("a  ", 1),
        ("", 0),
    ],
)
def test_released_as_soon_as_certain(text: str, released: int) -> None:
    assert stable_end(text) == released


def test_a_tokenizer_that_merges_across_words_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    pieces = TextPieces(lambda text: [len(text)])
    with caplog.at_level(logging.WARNING):
        ids = [*pieces.push("one two"), *pieces.end()]
    assert ids == [3, 4]
    assert "push tokens instead of text" in caplog.text


def test_a_new_text_starts_after_the_end() -> None:
    pieces = TextPieces(lambda text: [ord(letter) for letter in text])
    assert [*pieces.push("ab"), *pieces.end()] == [97, 98]
    assert pieces.end() == []
    assert [*pieces.push("c "), *pieces.end()] == [99, 32]
