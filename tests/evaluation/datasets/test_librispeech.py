"""LibriSpeech: found from any folder a user may name; only its own parts are read."""

from pathlib import Path

import pytest

from moss.data.manifest import write_manifest
from moss.errors import DataError
from moss.evaluation.datasets import open_dataset
from moss.evaluation.datasets.librispeech import EXPECTED
from tests.evaluation.datasets.trees import librispeech
from tests.recordings import write_tone


@pytest.mark.parametrize("below", ["..", ".", "test-clean"])
def test_librispeech_from_any_of_its_folders(tmp_path, below):
    utterances = open_dataset("librispeech", librispeech(tmp_path) / below).utterances
    assert [u.id for u in utterances] == ["1089-134686-0000", "1089-134686-0001", "237-126133-0000"]
    first = utterances[0]
    assert (first.text, first.language, first.speaker) == ("HE HOPED", "en", "1089")
    assert (first.source, first.licence, first.duration_s) == ("librispeech", "CC-BY-4.0", 0.5)
    assert Path(first.audio).is_file()
    write_manifest(tmp_path / "utterances.jsonl", utterances)


def test_librispeech_counts_are_published_ones(tmp_path):
    dataset = open_dataset("librispeech", librispeech(tmp_path))
    assert dataset.name == "LibriSpeech test-clean"
    assert EXPECTED["test-clean"] == 2620
    assert dataset.notes == [
        "LibriSpeech test-clean has 2620 clips as published, here are 3: scores are not comparable with published ones."
    ]


def test_an_unpublished_part_has_no_expected_count(tmp_path):
    assert open_dataset("librispeech", librispeech(tmp_path, "train-tiny"), "train-tiny").notes == []


def test_librispeech_converted_to_wav(tmp_path):
    root = librispeech(tmp_path)
    for flac in root.rglob("*.flac"):
        write_tone(flac.with_suffix(".wav"), 0.25)
        flac.unlink()
    assert {u.duration_s for u in open_dataset("librispeech", root).utterances} == {0.25}


def test_librispeech_in_a_wrong_folder(tmp_path):
    root = librispeech(tmp_path)
    with pytest.raises(DataError, match=r"no LibriSpeech 'test-other' here.* holds the folders \['test-clean'\]"):
        open_dataset("librispeech", root, "test-other")
    with pytest.raises(DataError, match="is a part of LibriSpeech itself and not 'dev-clean'"):
        open_dataset("librispeech", root / "test-clean", "dev-clean")
    with pytest.raises(DataError, match="no LibriSpeech 'test-clean' here"):
        open_dataset("librispeech", root / "test-clean/1089")
