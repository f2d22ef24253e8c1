"""Pieces of a long text: short enough, whole where they must be, and nothing lost."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moss.errors import DataError
from moss.sequence.long_form import sentences, split_sentences, split_turns


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("你好。今天好吗？好！走吧", ["你好。", "今天好吗？", "好！", "走吧"]),
        ("他说“好。”然后走了。", ["他说“好。”", "然后走了。"]),
        ('"Really?" he said. "Yes." She left.', ['"Really?" he said.', '"Yes."', "She left."]),
        ("Dr. Smith paid 3.5 dollars, e.g. to J. Doe. Fine.", ["Dr. Smith paid 3.5 dollars, e.g. to J. Doe.", "Fine."]),
        ("Wait [pause 1.5s. Really] now. Go.", ["Wait [pause 1.5s. Really] now.", "Go."]),
        ("See https://example.org/a. b?c=1. Then go.", ["See https://example.org/a. b?c=1.", "Then go."]),
        ("Look at https://example.org/a!b. Then go.", ["Look at https://example.org/a!b.", "Then go."]),
        ("看https://例子.cn/。走。", ["看https://例子.cn/。", "走。"]),
        ("Say /həˈl. Oʊ/ now. Go.", ["Say /həˈl. Oʊ/ now.", "Go."]),
        ("Line one\nLine two", ["Line one", "Line two"]),
        ("नमस्ते। आप कैसे हैं? ठीक।", ["नमस्ते।", "आप कैसे हैं?", "ठीक।"]),
        ("مرحبا. كيف حالك؟ بخير.", ["مرحبا.", "كيف حالك؟", "بخير."]),
        ("  ", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("One. Two. Three.", 100, ["One. Two. Three."]),
        ("One. Two. Three.", 9, ["One. Two.", "Three."]),
        ("One. Two. Three.", 8, ["One.", "Two.", "Three."]),
        ("First this, then that, then 1,000 more.", 16, ["First this,", "then that,", "then 1,000 more."]),
        ("several words without any comma", 13, ["several words", "without any", "comma"]),
        ("今天天气很好我们去公园", 4, ["今天天气", "很好我们", "去公园"]),
        ("今天，我们去公园。", 6, ["今天，", "我们去公园。"]),
        ("今天我们。", 4, ["今天我", "们。"]),
        ("unbreakable", 3, ["unbreakable"]),
        ("go to https://example.org/a,b now", 8, ["go to", "https://example.org/a,b", "now"]),
        ("go [pause 1.5s] on /a b/ on", 5, ["go", "[pause 1.5s]", "on", "/a b/", "on"]),
        ("你好/t ɛ s t/世界", 3, ["你好", "/t ɛ s t/", "世界"]),
        ("either/or and/or so", 9, ["either/or", "and/or so"]),
        ("สวัสดีครับ", 4, ["สวัส", "ดีค", "รับ"]),
        ("", 5, []),
        (" \n ", 5, []),
    ],
)
def test_pieces(text: str, limit: int, expected: list[str]) -> None:
    assert split_sentences(text, limit) == expected


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab中文。，. ,!?\n[]/1", max_size=60), st.integers(1, 20))
def test_nothing_is_lost_and_pieces_fit(text: str, limit: int) -> None:
    pieces = split_sentences(text, limit)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(piece == piece.strip() != "" for piece in pieces)
    # What is too long has no place left to cut: no blank, no two ideographs, outside something whole.
    for piece in pieces:
        if len(piece) > limit and not set(piece) & set("[]/"):
            assert not re.search(r"\s|[中文]{2}", piece), piece


def test_a_book_is_cut_quickly() -> None:
    text = "A sentence that is, after all, too long for its piece and has to be cut. " * 5000
    assert all(len(piece) <= 30 for piece in split_sentences(text, 30))


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("[S1]Hi.[S2]Ho.[S1]Bye.", 100, ["[S1]Hi.[S2]Ho.[S1]Bye."]),
        ("[S1]Hi.[S2]Ho.[S1]Bye.", 14, ["[S1]Hi.[S2]Ho.", "[S1]Bye."]),
        ("[S1] Hi. How are you?[S2]Ok.", 16, ["[S1]Hi.", "[S1]How are you?", "[S2]Ok."]),
        ("[S2]今天天气很好", 8, ["[S2]今天天气", "[S2]很好"]),
    ],
)
def test_turns(text: str, limit: int, expected: list[str]) -> None:
    assert split_turns(text, limit) == expected


def test_errors() -> None:
    with pytest.raises(DataError, match="max_chars=0; a piece needs at least one character"):
        split_sentences("a", 0)
    with pytest.raises(DataError, match=r"max_chars=4 leaves no room for words beside the tag \[S1\]; raise it"):
        split_turns("[S1]a", 4)
    with pytest.raises(DataError, match="has no speaker tag"):
        split_turns("a", 40)
