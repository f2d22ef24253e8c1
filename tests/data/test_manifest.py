import dataclasses
import json
import math

import pytest

from moss.data.manifest import Utterance, check_id, read_manifest, stored_path, write_manifest
from moss.errors import DataError


def _row(**changes):
    return {"id": "a", "audio": "a.wav", "text": "Hello.", "language": "en"} | changes


def _write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_round_trip_with_relative_and_absolute_audio(tmp_path):
    inside = Utterance(id="a", audio=str(tmp_path / "wavs" / "a.wav"), text="é 你好", language="fr", duration_s=1.5,
                       extra={"tokens": 12, "reference": [None, "x"]}, split="train")  # fmt: skip
    outside = Utterance(id="b", audio="/elsewhere/b.wav", text="b", language="en")
    request = Utterance(id="c", audio="", text="c", language="en")
    write_manifest(tmp_path / "utterances.jsonl", [inside, outside, request])
    rows = [json.loads(line) for line in (tmp_path / "utterances.jsonl").read_text().splitlines()]
    assert [row["audio"] for row in rows] == ["wavs/a.wav", "/elsewhere/b.wav", ""]
    assert read_manifest(tmp_path / "utterances.jsonl") == [inside, outside, request]


def test_what_may_have_no_text(tmp_path):
    voice = Utterance(id="v", audio="/v.wav", text="", language="", split="reference")
    sound = Utterance(id="s", audio="/s.wav", text="", language="", extra={"ambient_sound": "rain"})
    write_manifest(tmp_path / "m.jsonl", [voice, sound])
    assert read_manifest(tmp_path / "m.jsonl") == [voice, sound]
    assert voice.is_levelled
    assert not sound.is_levelled
    assert not dataclasses.replace(voice, extra={"as_recorded": True}).is_levelled


def test_a_moved_folder_still_resolves(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    write_manifest(first / "m.jsonl", [Utterance(id="a", audio=str(first / "a.wav"), text="a", language="en")])
    first.rename(second)
    assert read_manifest(second / "m.jsonl")[0].audio == str(second / "a.wav")


def test_stored_path_is_relative_only_inside(tmp_path):
    assert stored_path(tmp_path / "x" / "a.wav", tmp_path) == "x/a.wav"
    assert stored_path(tmp_path / "a.wav", tmp_path / "x") == str(tmp_path / "a.wav")


def test_sound_alone_is_enough_where_no_text_is_needed(tmp_path):
    path = _write(tmp_path / "m.jsonl", _row(text=""))
    (utterance,) = read_manifest(path, needs_text=False)
    assert utterance.text == ""
    with pytest.raises(DataError, match=r"m\.jsonl:1: empty text"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (_row(texd="x"), r"m\.jsonl:2: fields missing \[\], unknown \['texd'\]; expected"),
        ({"id": "b", "audio": "a.wav"}, r"m\.jsonl:2: fields missing \['text', 'language'\]"),
        (_row(id="b", text=3), r"m\.jsonl:2: field 'text' got 3, expected str"),
        (_row(id="b", duration_s="1"), r"m\.jsonl:2: field 'duration_s' got '1', expected int or float"),
        (_row(id="b", duration_s=True), r"m\.jsonl:2: field 'duration_s' got True, expected int or float"),
        (_row(id="b", duration_s=-1), r"m\.jsonl:2: duration_s -1, expected seconds, 0 or more; 0 is unknown"),
        (_row(id="b", duration_s=math.nan), r"m\.jsonl:2: duration_s nan, expected seconds"),
        (_row(id="b", duration_s=math.inf), r"m\.jsonl:2: duration_s inf, expected seconds"),
        (_row(id="b", split="test"), r"m\.jsonl:2: split 'test', expected 'train', 'heldout', 'reference' or ''"),
        (_row(id="b", text=" "), r"m\.jsonl:2: empty text; only clips of split 'reference' and sounds described by"),
        (_row(id="b/c"), r"m\.jsonl:2: id 'b/c' cannot name a shard member"),
        (_row(), r"m\.jsonl:2: duplicate id 'a', first used in line 1"),
    ],
)
def test_bad_rows_name_the_line(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        read_manifest(_write(tmp_path / "m.jsonl", _row(), row))


def test_a_missing_manifest_says_what_makes_it(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl does not exist; make it with data_prep/01_manifest\.py"):
        read_manifest(tmp_path / "none.jsonl")


@pytest.mark.parametrize("good", ["a", "en__letters__at", "common_voice_en_1-x", "été", "a+b=c@d", "x" * 160])
def test_ids_that_can_name_a_member(good):
    check_id(good, "here")


@pytest.mark.parametrize("bad", ["", "a.b", "a/b", "a b", "x" * 161, "é" * 81, "a\n"])
def test_ids_that_cannot(bad):
    with pytest.raises(DataError, match=r"here: id .* cannot name a shard member; use letters"):
        check_id(bad, "here")


def test_utterances_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Utterance(id="a", audio="", text="", language="").id = "b"


@pytest.mark.parametrize(("extra", "most"), [({}, 2), ({"downmixed_channels": 8}, None)])
def test_more_channels_only_where_the_user_accepted_their_mean(extra, most):
    assert Utterance(**_row(extra=extra)).max_channels == most
