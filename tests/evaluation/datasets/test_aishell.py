"""AISHELL-1 and -2: found from any folder a user may name; blanks between Chinese words are taken out."""

import shutil
from pathlib import Path

import pytest

from moss.errors import DataError
from moss.evaluation.datasets import open_dataset
from moss.evaluation.datasets.aishell import EXPECTED_1, EXPECTED_2
from tests.evaluation.datasets.trees import aishell_1, aishell_2
from tests.recordings import write_tone


@pytest.mark.parametrize("below", ["..", ".", "wav", "wav/test"])
def test_aishell_1_from_any_of_its_folders(tmp_path, below):
    utterances = open_dataset("aishell", aishell_1(tmp_path) / below).utterances
    assert [u.id for u in utterances] == ["BAC009S0764W0121", "BAC009S0764W0122"]
    first = utterances[0]
    assert first.text == "甚至出现交易OK FINE几乎停滞"
    assert (first.language, first.speaker, first.source, first.duration_s) == ("zh", "S0764", "aishell-1", 0.5)


def test_aishell_1_parts_and_counts(tmp_path):
    root = aishell_1(tmp_path)
    dataset = open_dataset("aishell", root, "dev")
    assert [u.speaker for u in dataset.utterances] == ["S0724", "S0724"]
    assert dataset.notes[0].startswith(f"AISHELL-1 dev has {EXPECTED_1['dev']} clips as published, here are 2")
    (root / "wav/test/S0764/BAC009S0764W0122.wav").unlink()
    write_tone(root / "wav/test/S0764/BAC009S0764W0999.wav", 0.1)
    dataset = open_dataset("aishell", root)
    assert len(dataset.utterances) == 2
    assert dataset.notes[0].startswith("1 of 2 clips of AISHELL-1 test have no recording")
    assert dataset.notes[1].startswith("1 recordings of AISHELL-1 test have no transcript")


def test_aishell_1_in_a_wrong_folder(tmp_path):
    root = aishell_1(tmp_path)
    with pytest.raises(DataError, match=r"no AISHELL-1 'train' here: .* holds \['dev', 'test'\]; name another part"):
        open_dataset("aishell", root, "train")
    with pytest.raises(DataError, match="is the part 'test' itself and not 'dev'"):
        open_dataset("aishell", root / "wav/test", "dev")
    shutil.rmtree(root / "wav")
    (root / "wav").mkdir()
    (root / "wav/S0764.tar.gz").touch()
    with pytest.raises(DataError, match="unpack the 1 archives"):
        open_dataset("aishell", root)
    with pytest.raises(DataError, match="no AISHELL 'test' here: neither transcript/aishell_transcript_v0.8.txt"):
        open_dataset("aishell", tmp_path.parent)


def test_transcripts_that_are_not_utf8(tmp_path):
    root = aishell_1(tmp_path)
    (root / "transcript/aishell_transcript_v0.8.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"aishell_transcript_v0.8.txt.*UTF-8"):
        open_dataset("aishell", root)


@pytest.mark.parametrize("below", [".", "..", "../.."])
def test_aishell_2_from_any_of_its_folders(tmp_path, below):
    dataset = open_dataset("aishell", aishell_2(tmp_path) / below)
    first = dataset.utterances[0]
    assert (first.id, first.text, first.speaker, first.language) == ("IT0011W0001", "换一首歌", "T0011", "zh")
    assert Path(first.audio).is_file()
    assert dataset.name == "AISHELL-2 test"
    assert dataset.notes[0].startswith(f"AISHELL-2 test has {EXPECTED_2['test']} clips as published, here are 2")


def test_aishell_2_gaps_are_counted(tmp_path):
    folder = aishell_2(tmp_path)
    (folder / "wav/T0011/IT0011W0001.wav").unlink()
    with (folder / "trans.txt").open("a", encoding="utf-8") as file:
        file.write("IT0011W0003\t再来\n")
    with (folder / "wav.scp").open("a", encoding="utf-8") as file:
        file.write("IT0011W0009\twav/T0011/IT0011W0009.wav\n")
    dataset = open_dataset("aishell", folder)
    assert len(dataset.utterances) == 3
    assert dataset.notes[0].startswith("2 of 3 clips of AISHELL-2 test have no recording")
    assert "IT0011W0001, IT0011W0003" in dataset.notes[0]
    assert dataset.notes[1].startswith(
        "1 recordings of AISHELL-2 test have no transcript and are left out: IT0011W0009"
    )
    with pytest.raises(DataError, match="is the part 'test' itself and not 'dev'"):
        open_dataset("aishell", folder, "dev")
