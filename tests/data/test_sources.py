import json

import pytest

from moss.data.manifest import check_id
from moss.data.source_choice import candidates, duration_limits
from moss.data.source_openmoss import openmoss_source
from moss.data.sources import folder_source, meta_lst_source, one_line, safe_id
from moss.errors import DataError
from tests.recordings import write_tone


class Options:
    def __init__(self, source, root, path=None, **values):
        self.source, self.root, self.input = source, root, path
        self.languages, self.language, self.speaker, self.licence = None, "", "", ""
        self.__dict__.update(values)


@pytest.mark.parametrize("name", ["a", "en/letters/at", "with space.v2", "你好", "x" * 300, "é/" * 100, "a.b", "a b"])
def test_safe_ids_can_name_a_member_and_stay_apart(name):
    check_id(safe_id(name), name)
    assert safe_id(name) != safe_id(name + ".")


def test_safe_id_keeps_plain_names():
    assert safe_id("en/letters/at") == "en__letters__at"
    assert one_line("  a\n b\t c ") == "a b c"


def test_folder_finds_audio_and_text_in_subfolders(tmp_path):
    write_tone(tmp_path / "a.wav")
    (tmp_path / "a.txt").write_text("\ufeffHello\n there.", encoding="utf-8")
    write_tone(tmp_path / "anna" / "deep" / "b.FLAC")
    (tmp_path / "anna" / "deep" / "b.txt").write_text("Two.", encoding="utf-8")
    write_tone(tmp_path / "c.wav")
    write_tone(tmp_path / "d.wav")
    (tmp_path / "d.txt").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "notes.md").touch()
    found = list(folder_source(tmp_path, language="en", speaker="me", licence="CC0"))
    assert [(c.id, c.text, c.speaker, c.problem) for c in found] == [
        ("a", "Hello there.", "me", ""),
        ("anna__deep__b", "Two.", "anna", ""),
        ("c", "", "me", "no text: c.txt is missing"),
        ("d", "", "me", found[3].problem),
    ]
    assert found[3].problem.startswith("text d.txt: not UTF-8: byte 0xef at position 2; convert")
    assert {(c.language, c.licence, c.source) for c in found} == {("en", "CC0", "folder")}


def test_a_text_that_cannot_be_read_is_a_problem_of_its_recording(tmp_path):
    write_tone(tmp_path / "a.wav")
    (tmp_path / "a.txt").mkdir()
    (found,) = folder_source(tmp_path, language="en")
    assert found.problem == "text a.txt cannot be read: Is a directory"


def test_a_folder_without_audio_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"none is not a folder; name one that holds audio"):
        list(folder_source(tmp_path / "none", language="en"))
    with pytest.raises(DataError, match=r"no audio below .*; expected files ending in .*\.wav"):
        list(folder_source(tmp_path, language="en"))


def _meta(tmp_path, *lines):
    path = tmp_path / "en" / "meta.lst"
    path.parent.mkdir()
    path.write_bytes(b"".join(line if isinstance(line, bytes) else line.encode() + b"\n" for line in lines))
    return path


def test_meta_lst_with_3_4_and_5_fields(tmp_path):
    path = _meta(tmp_path, "u1|hi|prompts/p.wav|Say this.|wavs/x.wav", "u2|hi|prompts/p.wav|And this.", "",
                 "u3.wav|Only this.|prompts/p.wav", "u4|hi|p.wav|No target.")  # fmt: skip
    target = write_tone(path.parent / "wavs" / "u2.wav")
    found = list(meta_lst_source(path, language="en"))
    assert [(c.id, c.text, c.audio) for c in found] == [
        ("u1", "Say this.", path.parent / "wavs" / "x.wav"),
        ("u2", "And this.", target),
        ("u3", "Only this.", None),
        ("u4", "No target.", None),
    ]
    assert found[0].references == (path.parent / "prompts" / "p.wav",)
    assert [c.extra["reference_text"] for c in found] == ["hi", "hi", "", "hi"]
    assert found[2].extra["original_id"] == "u3"


@pytest.mark.parametrize(("line", "fields"), [("a|b", 2), ("just words", 1), ("a|b|c|d|e|f", 6)])
def test_meta_lst_with_other_fields_is_a_hard_error(tmp_path, line, fields):
    path = _meta(tmp_path, "u1|hi|p.wav|Text.", line)
    with pytest.raises(DataError, match=rf"meta\.lst:2: {fields} fields separated by '\|', expected 5 .*, 4 .* or 3"):
        list(meta_lst_source(path, language="en"))


def test_meta_lst_missing_or_not_utf8(tmp_path):
    path = _meta(tmp_path, "u1|hi|p.wav|Text.", "u2|hi|p.wav|café".encode("latin-1"))
    with pytest.raises(DataError, match=r"meta\.lst:2: not UTF-8: byte 0xe9"):
        list(meta_lst_source(path, language="en"))
    with pytest.raises(DataError, match=r"cannot read .*none\.lst"):
        list(meta_lst_source(tmp_path / "none.lst", language="en"))


def _jsonl(tmp_path, *rows):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


def test_openmoss_keeps_every_field(tmp_path):
    row = {"audio": "a.wav", "text": "Hello.", "language": "en", "instruction": "calmly", "tokens": 25,
           "quality": "high", "sound_event": "none", "ambient_sound": "rain", "custom": [1]}  # fmt: skip
    (found,) = openmoss_source(_jsonl(tmp_path, row))
    assert found.audio == tmp_path / "a.wav"
    assert (found.id, found.text, found.language) == ("train-000001", "Hello.", "en")
    assert found.extra == {name: row[name] for name in row if name not in ("audio", "text", "language")}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"ref_audio": "r.wav"}, ["r.wav"]),
        ({"reference_audio": ["r.wav", "s.wav"], "ref_audio": "t.wav"}, ["r.wav", "s.wav"]),
        ({"reference": [None, "s.wav"], "reference_audio": ["t.wav"]}, [None, "s.wav"]),
        ({"reference": None, "ref_audio": "t.wav"}, ["t.wav"]),
        ({"reference": None}, []),
    ],
)
def test_openmoss_references_by_precedence(tmp_path, fields, expected):
    (found,) = openmoss_source(_jsonl(tmp_path, {"audio": "a.wav", "text": "x"} | fields))
    resolved = [name and str(tmp_path / name) for name in expected]
    assert found.extra["reference"] == resolved
    assert [str(path) for path in found.references] == [name for name in resolved if name]


def test_openmoss_paths_fall_back_to_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "list").mkdir()
    monkeypatch.chdir(tmp_path)
    write_tone(tmp_path / "here.wav")
    (found,) = openmoss_source(_jsonl(tmp_path / "list", {"audio": "here.wav", "text": "x"}))
    assert found.audio == tmp_path / "here.wav"


def test_openmoss_bad_rows_carry_their_problem(tmp_path):
    path = _jsonl(tmp_path, {"text": "x"}, {"audio": "a.wav", "text": "x", "ref_audio": 3}, b'{"text": "\xe9"}',
                  {"audio": "a.wav", "text": None})  # fmt: skip
    found = list(openmoss_source(path, language="en", licence="CC0"))
    assert [c.problem for c in found] == [
        "field 'audio' is None, expected a path",
        "field 'ref_audio' is 3, expected a path or a list of paths and nulls",
        found[2].problem,
        "",
    ]
    assert found[2].problem.startswith("line 3: not UTF-8: byte 0xe9")
    assert found[3].text == ""
    assert {c.language for c in found} == {"en"}


def test_openmoss_broken_json_is_a_hard_error(tmp_path):
    with pytest.raises(DataError, match=r"train\.jsonl:2: not JSON"):
        list(openmoss_source(_jsonl(tmp_path, {"audio": "a", "text": "b"}, b"{")))
    with pytest.raises(DataError, match=r"cannot read .*none\.jsonl"):
        list(openmoss_source(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match=r"train\.jsonl:1: field 'conversations' must be a list of objects"):
        list(openmoss_source(_jsonl(tmp_path, {"conversations": "hello"})))


def test_openmoss_conversations_become_turns(tmp_path):
    row = {"id": "talk/1", "ref_wav": "r.wav", "topic": "tea", "conversations": [
        {"role": "user", "text": "Hi?"}, {"role": "assistant", "text": "Hello.", "wav": "1.wav"}]}  # fmt: skip
    user, assistant = openmoss_source(_jsonl(tmp_path, row), language="en")
    assert user.left_out == "turn without a recording"
    assert (assistant.id, assistant.text, assistant.audio) == ("talk__1-turn001", "Hello.", tmp_path / "1.wav")
    assert assistant.extra == {"topic": "tea", "conversation": "talk/1", "turn": 1, "role": "assistant",
                               "reference": [str(tmp_path / "r.wav")]}  # fmt: skip


def test_openmoss_prepared_codes_are_not_used_and_that_is_said(tmp_path, caplog):
    (found,) = openmoss_source(_jsonl(tmp_path, {"audio": "a.wav", "text": "x", "audio_codes": [[1, 2]]}))
    assert "audio_codes" not in found.extra
    assert "code arrays in 1 lines are not used" in caplog.text


def test_sources_by_name(tmp_path):
    assert duration_limits("asterisk", None, None) == (0.8, 12.0)
    assert duration_limits("asterisk", None, 30.0) == (0.8, 30.0)
    assert duration_limits("folder", None, None) == (0.0, float("inf"))
    with pytest.raises(DataError, match="--source meta-lst needs --input"):
        candidates(Options("meta-lst", tmp_path))
    with pytest.raises(DataError, match="--source folder needs --language"):
        candidates(Options("folder", tmp_path, tmp_path))
    path = _meta(tmp_path, "u1|hi|p.wav|Text.")
    (found,) = candidates(Options("meta-lst", tmp_path, path))
    assert found.language == "en"
    (found,) = candidates(
        Options("openmoss-jsonl", tmp_path, _jsonl(tmp_path, {"audio": "a", "text": "b"}), language="it")
    )
    assert found.language == "it"
    write_tone(tmp_path / "wavs" / "a.wav")
    (found,) = candidates(Options("folder", tmp_path, tmp_path / "wavs", language="en", speaker="me"))
    assert found.speaker == "me"
