"""LibriSpeech: <split>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac, and a .trans.txt in each chapter."""

from pathlib import Path

from moss.errors import DataError
from moss.evaluation.datasets.listing import Dataset, Listed, Origin, make_dataset, subfolders, transcript_lines

DEFAULT_SPLIT = "test-clean"

EXPECTED = {"dev-clean": 2703, "dev-other": 2864, "test-clean": 2620, "test-other": 2939}
"""Clips of each part. Source: openslr.org/12."""

_TRANSCRIPTS = "*/*/*.trans.txt"
_SUFFIXES = (".flac", ".wav")
"""The set is flac; converted copies are common."""


def read_librispeech(folder: Path, split: str | None) -> Dataset:
    """One part of LibriSpeech.

    Args:
        folder: The unpacked set (LibriSpeech or the folder around it), or one of its parts.
        split: The part; None takes the one that `folder` is, else test-clean.

    Raises:
        DataError: no such part below the folder; see `make_dataset` for the rest.
    """
    part = _part(folder, split)
    listed = []
    recordings = {path for suffix in _SUFFIXES for path in part.glob(f"*/*/*{suffix}")}
    for transcripts in sorted(part.glob(_TRANSCRIPTS)):
        for name, text in transcript_lines(transcripts):
            places = [transcripts.parent / f"{name}{suffix}" for suffix in _SUFFIXES]
            audio = next((place for place in places if place in recordings), places[0])
            listed.append(Listed(name=name, audio=audio, text=text, speaker=transcripts.parent.parent.name))
    origin = Origin(
        name=f"LibriSpeech {part.name}",
        language="en",
        licence="CC-BY-4.0",
        source="librispeech",
        expected=EXPECTED.get(part.name),
    )
    return make_dataset(origin, listed, sorted(recordings - {entry.audio for entry in listed}), folder)


def _part(folder: Path, split: str | None) -> Path:
    """The folder of the wanted part."""
    if any(folder.glob(_TRANSCRIPTS)):
        # Its own name may say nothing, but a part that is asked for by name must be that one.
        if split is None or folder.resolve().name == split:
            return folder.resolve()
        raise DataError(f"{folder}: is a part of LibriSpeech itself and not {split!r}; name the folder around it")
    wanted = split or DEFAULT_SPLIT
    for part in (folder / wanted, folder / "LibriSpeech" / wanted):
        if any(part.glob(_TRANSCRIPTS)):
            return part
    raise DataError(
        f"{folder}: no LibriSpeech {wanted!r} here: neither {wanted}/<speaker>/<chapter>/*.trans.txt nor the same "
        f"without {wanted}/; it holds the folders {subfolders(folder)[:10]}; name the unpacked LibriSpeech folder or "
        "one of its parts"
    )
