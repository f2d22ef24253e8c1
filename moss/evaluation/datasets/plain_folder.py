"""Any folder of recordings, each with its text in a .txt of the same name beside it where there is one."""

from pathlib import Path

from moss.data.sources import Candidate, folder_source
from moss.errors import DataError
from moss.evaluation.datasets.listing import Dataset, Listed, Origin, make_dataset


def read_folder(folder: Path, split: str | None, language: str) -> Dataset:
    """The recordings below a folder; one without a text has an empty one, and thus no WER.

    Args:
        folder: Searched with its subfolders.
        split: One of its subfolders; None takes all of it.
        language: Two-letter code of all texts, or empty.

    Raises:
        DataError: no such folder, no audio in it, or not one recording that can be read.
    """
    part = folder if split is None else folder / split
    found = list(folder_source(part, language=language))
    origin = Origin(name=f"folder {part.name}", language=language, licence="", source="folder", expected=None)
    listed = [_listed(candidate) for candidate in found]
    dataset = make_dataset(origin, listed, [], folder)
    if not any(utterance.duration_s for utterance in dataset.utterances):
        raise DataError(f"{part}: not one of {len(listed)} recordings can be read; check their format")
    silent = [candidate.problem for candidate in found if candidate.problem]
    notes = [f"{len(silent)} of {len(listed)} recordings have no WER: {silent[0]}."] if silent else []
    return Dataset(name=dataset.name, utterances=dataset.utterances, notes=[*dataset.notes, *notes])


def _listed(candidate: Candidate) -> Listed:
    assert candidate.audio is not None, "a folder lists what it holds"
    return Listed(name=candidate.id, audio=candidate.audio, text=candidate.text, speaker=candidate.speaker)
