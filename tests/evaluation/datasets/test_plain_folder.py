"""A folder of recordings with and without texts."""

import pytest

from moss.errors import DataError
from moss.evaluation.datasets import open_dataset
from tests.recordings import write_tone


def test_plain_folder(tmp_path):
    write_tone(tmp_path / "anna/a.wav", 0.5)
    (tmp_path / "anna/a.txt").write_text("guten  Tag\n", encoding="utf-8")
    write_tone(tmp_path / "b.wav", 0.5)
    dataset = open_dataset("folder", tmp_path, language="de")
    assert [(u.id, u.text, u.speaker, u.language) for u in dataset.utterances] == [
        ("anna__a", "guten Tag", "anna", "de"),
        ("b", "", "", "de"),
    ]
    assert dataset.notes == ["1 of 2 recordings have no WER: no text: b.txt is missing."]
    assert [u.id for u in open_dataset("folder", tmp_path, "anna").utterances] == ["a"]


def test_plain_folder_without_recordings(tmp_path):
    with pytest.raises(DataError, match="no audio below"):
        open_dataset("folder", tmp_path)
    (tmp_path / "a.wav").write_bytes(b"no wav")
    with pytest.raises(DataError, match="not one of 1 recordings can be read"):
        open_dataset("folder", tmp_path)
    with pytest.raises(DataError, match="nowhere is not a folder"):
        open_dataset("folder", tmp_path, "nowhere")
