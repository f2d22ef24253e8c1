"""Test sets by name."""

import pytest

from moss.errors import DataError
from moss.evaluation.datasets import KINDS, open_dataset


def test_unknown_kind_and_folder(tmp_path):
    assert KINDS == ("librispeech", "aishell", "folder")
    with pytest.raises(DataError, match="dataset 'timit' is unknown, expected one of"):
        open_dataset("timit", tmp_path)
    with pytest.raises(DataError, match="nowhere is not a folder; name the unpacked librispeech data"):
        open_dataset("librispeech", tmp_path / "nowhere")
