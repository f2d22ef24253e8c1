"""Test sets by name."""

import pytest

from moss.errors import DataError
from moss.evaluation.datasets import KINDS, read_dataset


def test_unknown_kind_and_folder(tmp_path):
    assert KINDS == ("librispeech", "aishell", "folder")
    with pytest.raises(DataError, match="dataset 'timit' is unknown, expected one of"):
        read_dataset("timit", tmp_path)
    with pytest.raises(DataError, match="nowhere is not a folder; name the unpacked librispeech data"):
        read_dataset("librispeech", tmp_path / "nowhere")
