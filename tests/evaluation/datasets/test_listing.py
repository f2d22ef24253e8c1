"""Every gap between transcripts and recordings is counted and named."""

import pytest

from moss.errors import DataError
from moss.evaluation.datasets import open_dataset
from moss.evaluation.datasets.librispeech import EXPECTED
from tests.evaluation.datasets.trees import librispeech
from tests.recordings import write_tone


def test_a_complete_set_has_no_notes(tmp_path, monkeypatch):
    monkeypatch.setitem(EXPECTED, "dev-clean", 3)
    assert open_dataset("librispeech", librispeech(tmp_path, "dev-clean"), "dev-clean").notes == []


def test_a_missing_recording_stays_and_is_counted(tmp_path, caplog):
    root = librispeech(tmp_path)
    gone = root / "test-clean/1089/134686/1089-134686-0001.flac"
    gone.unlink()
    dataset = open_dataset("librispeech", root)
    lost = dataset.utterances[1]
    assert (lost.audio, lost.duration_s) == (str(gone), 0.0)
    note = "1 of 3 clips of LibriSpeech test-clean have no recording and score as failures: 1089-134686-0001."
    assert note in dataset.notes
    assert note in caplog.text


def test_a_broken_recording_stays_and_is_counted(tmp_path):
    root = librispeech(tmp_path)
    (root / "test-clean/237/126133/237-126133-0000.flac").write_bytes(b"no flac")
    dataset = open_dataset("librispeech", root)
    assert dataset.utterances[2].duration_s == 0.0
    assert dataset.notes[0].startswith("1 of 3 recordings of LibriSpeech test-clean cannot be read")


def test_a_recording_without_a_transcript_is_left_out_and_counted(tmp_path):
    root = librispeech(tmp_path)
    for number in range(7, 14):
        write_tone(root / f"test-clean/237/126133/237-126133-{number:04d}.flac", 0.1)
    dataset = open_dataset("librispeech", root)
    assert len(dataset.utterances) == 3
    assert dataset.notes[0] == (
        "7 recordings of LibriSpeech test-clean have no transcript and are left out: 237-126133-0007.flac, "
        "237-126133-0008.flac, 237-126133-0009.flac, 237-126133-0010.flac, 237-126133-0011.flac, …."
    )


def test_librispeech_without_any_recording(tmp_path):
    root = librispeech(tmp_path)
    for flac in root.rglob("*.flac"):
        flac.unlink()
    with pytest.raises(DataError, match=r"none of the 3 recordings .* should be .*1089-134686-0000.flac; unpack"):
        open_dataset("librispeech", root)


def test_a_transcript_line_without_text(tmp_path):
    root = librispeech(tmp_path)
    path = root / "test-clean/237/126133/237-126133.trans.txt"
    path.write_text("237-126133-0000 HERE\n\n237-126133-0001\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"237-126133.trans.txt:3: '237-126133-0001' has no text behind it"):
        open_dataset("librispeech", root)


def test_two_lines_of_one_name(tmp_path):
    root = librispeech(tmp_path)
    path = root / "test-clean/237/126133/237-126133.trans.txt"
    path.write_text("237-126133-0000 HERE\n237-126133-0000 THERE\n", encoding="utf-8")
    with pytest.raises(DataError, match="two transcript lines are called '237-126133-0000'"):
        open_dataset("librispeech", root)


def test_empty_transcripts(tmp_path):
    root = librispeech(tmp_path)
    for path in root.rglob("*.trans.txt"):
        path.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="LibriSpeech test-clean has no transcript lines here"):
        open_dataset("librispeech", root)
