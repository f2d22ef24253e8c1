import errno
import os
import subprocess
import sys

import pytest

from moss.data import files
from moss.errors import DataError


def _stop_while_writing(path):
    with files.atomic_write(path) as temporary:
        temporary.write_text("two")
        raise KeyboardInterrupt


def test_a_write_is_complete_or_absent(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with files.atomic_write(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
        assert temporary.parent == path.parent
        assert temporary.suffix == ".txt"
    assert path.read_text() == "one"
    with pytest.raises(KeyboardInterrupt):
        _stop_while_writing(path)
    assert path.read_text() == "one"
    assert os.listdir(path.parent) == ["a.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_explained(tmp_path, monkeypatch, number):
    def full(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(DataError, match=r"no space left on \S+ while writing .*a\.bin .*finished work is kept"):
        files.write_bytes(tmp_path / "a.bin", b"content")
    assert os.listdir(tmp_path) == []


def test_a_forbidden_folder_is_explained(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(DataError, match=r"cannot write .*a\.bin: Permission denied; choose a folder"):
        files.write_bytes(tmp_path / "a.bin", b"content")
    assert os.listdir(tmp_path) == []


def test_other_failures_of_the_system_stay_what_they_are(tmp_path):
    with pytest.raises(IsADirectoryError), files.atomic_write(tmp_path / "a"):
        tmp_path.read_bytes()


def test_leftovers_of_dead_processes_are_removed_and_others_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    own = files.socket.gethostname()
    (tmp_path / f".tmp-{own}-{dead.pid}-1-a.npy").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / f".tmp-{own}-{dead.pid}-1-b.npy").touch()
    (tmp_path / f".tmp-{own}-{os.getpid()}-1-c.npy").touch()
    (tmp_path / f".tmp-otherhost-{dead.pid}-1-d.npy").touch()
    assert files.remove_leftovers(tmp_path) == 1
    assert files.remove_leftovers(tmp_path, recursive=True) == 1
    assert set(os.listdir(tmp_path)) == {
        f".tmp-{own}-{os.getpid()}-1-c.npy",
        f".tmp-otherhost-{dead.pid}-1-d.npy",
        "sub",
    }


def test_json_lines_round_trip_and_number_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    files.write_jsonl(path, [{"text": "é 你好"}, {"n": 1}])
    assert files.read_jsonl(path) == [{"text": "é 你好"}, {"n": 1}]
    path.write_text('\ufeff{"a": 1}\n\n{"b": 2}\n')
    assert list(files.numbered_jsonl(path)) == [(1, {"a": 1}), (3, {"b": 2})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": \n', r"rows\.jsonl:2: not JSON .*one JSON object a line"),
        (b"[1]\n", r"rows\.jsonl:1: expected a JSON object, got list"),
        (b'{"a": 1}\n{"a": "caf\xe9"}\n', r"rows\.jsonl:2: not UTF-8: byte 0xe9 at position 10; .*iconv"),
    ],
)
def test_bad_json_lines_name_the_line(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        files.read_jsonl(path)


def test_a_missing_json_lines_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none\.jsonl: No such file"):
        files.read_jsonl(tmp_path / "none.jsonl")


def test_a_journal_survives_a_line_cut_short(tmp_path):
    path = tmp_path / "journal.jsonl"
    assert files.read_journal(path) == []
    files.append_jsonl(path, {"n": 1})
    with open(path, "ab") as file:
        file.write(b'{"n": 2, "half')
    files.append_jsonl(path, {"n": 3}, durable=False)
    assert files.read_journal(path) == [{"n": 1}, {"n": 3}]


def test_a_journal_keeps_whole_lines_on_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / "journal.jsonl"
    files.append_jsonl(path, {"n": 1})

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(DataError, match="no space left"):
        files.append_jsonl(path, {"n": 2})
    assert path.read_bytes() == b'{"n": 1}\n'


def test_sha256_is_of_the_bytes(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert files.sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_byte_order_mark_is_dropped():
    assert files.decode_utf8(b"\xef\xbb\xbfa", "x") == "a"
