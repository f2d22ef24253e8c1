"""Speaker tags."""

import pytest

from moss.errors import DataError
from moss.sequence.dialogue import (
    check_speakers,
    clean_dialogue,
    dialogue_text,
    merge_speakers,
    speaker_turns,
    speakers,
)

TEXT = "[S1]Hi. [S2] Hello![S1] Bye."


def test_turns_and_speakers() -> None:
    assert speaker_turns(TEXT) == [(1, "Hi. "), (2, " Hello!"), (1, " Bye.")]
    assert speakers(TEXT) == [1, 2]
    assert "".join(f"[S{number}]{words}" for number, words in speaker_turns(TEXT)) == TEXT


@pytest.mark.parametrize(("text", "places", "count"), [(TEXT, None, 2), (TEXT, 2, 2), ("[S1]a", 1, 1)])
def test_good_dialogues(text: str, places: int | None, count: int) -> None:
    assert check_speakers(text, places) == count


@pytest.mark.parametrize(
    ("text", "places", "message"),
    [
        ("Hi there", None, r"the dialogue 'Hi there' has no speaker tag; write \[S1\] before"),
        ("Hi [S1] there", None, "the words 'Hi' stand before the first speaker tag"),
        ("x" * 99, None, "'x{40}...' has no speaker tag"),
        ("".join(f"[S{n}]a" for n in range(1, 7)), None, "has 6 speakers, the model knows 5; merge some"),
        ("[S2]a[S1]b", None, r"first appear as \[S2\] \[S1\]; number them \[S1\], \[S2\]"),
        ("[S1]a[S3]b", None, r"first appear as \[S1\] \[S3\]"),
        ("[S0]a", None, r"first appear as \[S0\]"),
        (TEXT, 1, r"1 references for 2 speakers: tag \[S2\] has no reference; give one for each speaker, null"),
        (TEXT, 3, "3 references for 2 speakers: some have nothing to say"),
    ],
)
def test_bad_dialogues(text: str, places: int | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_speakers(text, places)


@pytest.mark.parametrize(
    ("transcripts", "text", "expected"),
    [
        ([], TEXT, TEXT),
        (["one.", "two."], TEXT, f"[S1] one.[S2] two.{TEXT}"),
        (["[S1]one.", None], TEXT, "[S1]one.Hi. [S2] Hello![S1] Bye."),
        ([None, " [S2] two. "], TEXT, f"[S2] two.{TEXT}"),
    ],
)
def test_transcripts_stand_in_front(transcripts: list[str | None], text: str, expected: str) -> None:
    assert dialogue_text(transcripts, text) == expected


@pytest.mark.parametrize(
    ("transcripts", "message"),
    [
        (["  "], "the transcript of speaker 1's clip is empty; write what is said in it, or use null"),
        ([None, "[S1] one"], r"the transcript of speaker 2's clip has the tag \[S1\]; give the transcripts in speaker"),
    ],
)
def test_bad_transcripts(transcripts: list[str | None], message: str) -> None:
    with pytest.raises(DataError, match=message):
        dialogue_text(transcripts, TEXT)


def test_merging() -> None:
    assert merge_speakers("[S1]a[S1] b[S2]c[S1]d[S1]e") == "[S1]a b[S2]c[S1]de"
    assert merge_speakers("none") == "none"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1] a [2] b", "[S1]a[S2]b"),
        ("[S1]【好】“对”", "[S1]好对"),
        ("[S1]哈哈哈好", "[S1][笑]好"),
        ("[S1]ha ha Hahaha ok", "[S1][laugh] ok"),
        ("[S1]a；b：c、d——e…f...g", "[S1]a，b，c，d，e，f，g"),
        ("[S1]at 12:30; go", "[S1]at 12:30, go"),
        ("[S1]甲。乙。", "[S1]甲，乙。"),
        ("[S1]甲，", "[S1]甲。"),
        ("[S1]well,", "[S1]well."),
        ("[S1]what?!! no。。", "[S1]what? no。"),
        ("[S1]well-known don’t - ‘so’", "[S1]well-known don't  so"),
        ("[S1]a\n[S1]b", "[S1]ab"),
        ("no tag", "no tag"),
    ],
)
def test_cleaning(text: str, expected: str) -> None:
    assert clean_dialogue(text) == expected
