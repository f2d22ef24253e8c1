"""The test sets by the names they have in settings."""

from pathlib import Path

from moss.errors import DataError
from moss.evaluation.datasets.aishell import read_aishell
from moss.evaluation.datasets.librispeech import read_librispeech
from moss.evaluation.datasets.listing import Dataset
from moss.evaluation.datasets.plain_folder import read_folder

KINDS = ("librispeech", "aishell", "folder")


def open_dataset(kind: str, folder: Path | str, split: str | None = None, *, language: str = "") -> Dataset:
    """Read the transcripts of a test set and look for its recordings; only their headers are opened.

    Args:
        kind: One of `KINDS`.
        folder: Where the set was unpacked, or one of its parts.
        split: The part; None takes the one that `folder` is, else the usual test part.
        language: Two-letter code of a plain folder's texts; the others know theirs.

    Raises:
        DataError: an unknown kind; a folder that does not exist or holds no such set; not one recording.
    """
    folder = Path(folder)
    if kind not in KINDS:
        raise DataError(f"dataset {kind!r} is unknown, expected one of {list(KINDS)}")
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; name the unpacked {kind} data")
    if kind == "librispeech":
        return read_librispeech(folder, split)
    if kind == "aishell":
        return read_aishell(folder, split)
    return read_folder(folder, split, language)
