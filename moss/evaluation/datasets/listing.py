"""From transcript lines and files to utterances, with everything that is odd counted and named.

A transcript line without a recording stays in the list under the path where the recording should lie: its scores then
fail and are counted, instead of silently making the set easier. A recording without a transcript is left out.
"""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moss.data.audio import audio_info
from moss.data.files import decode_utf8
from moss.data.manifest import Utterance
from moss.data.sources import one_line, safe_id
from moss.errors import DataError

logger = logging.getLogger(__name__)

_NAMED = 5
"""How many odd items a note names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """The clips of one part of a test set."""

    name: str
    """Set and part, such as "LibriSpeech test-clean"."""
    utterances: list[Utterance]
    """Sorted by id; a clip whose recording is missing is among them."""
    notes: list[str]
    """What a reader of the scores must know: missing recordings, or another number of clips than was published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A clip as its transcript names it."""

    name: str
    """As the test set calls it."""
    audio: Path
    """Where the recording lies, or should lie."""
    text: str
    speaker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What is the same for all clips of a set."""

    name: str
    language: str
    """Two-letter code, or empty when unknown."""
    licence: str
    source: str
    expected: int | None
    """Published number of clips; None where nothing was published."""


def make_dataset(origin: Origin, listed: Sequence[Listed], untranscribed: Sequence[Path], where: Path) -> Dataset:
    """Turn what was found into utterances and notes; the notes go to the log as warnings, too.

    Args:
        origin: What all clips share.
        listed: One per transcript line.
        untranscribed: Recordings that no transcript line names.
        where: The folder, for messages.

    Raises:
        DataError: nothing is listed, not one recording is there, or two clips have the same id.
    """
    if not listed:
        raise DataError(f"{where}: {origin.name} has no transcript lines here; name the unpacked folder of the set")
    missing = [entry for entry in listed if not entry.audio.is_file()]
    if len(missing) == len(listed):
        raise DataError(
            f"{where}: none of the {len(listed)} recordings that the transcripts of {origin.name} name is there; the "
            f"first should be {missing[0].audio}; unpack the recordings too"
        )
    unreadable: list[str] = []
    utterances = sorted((_utterance(entry, origin, unreadable) for entry in listed), key=lambda item: item.id)
    for one, other in itertools.pairwise(utterances):
        if one.id == other.id:
            raise DataError(f"{where}: two transcript lines are called {one.id!r}; unpack the set again")
    total = len(listed)
    lost = [entry.name for entry in missing]
    notes = _counted(lost, f"of {total} clips of {origin.name} have no recording and score as failures")
    notes += _counted(unreadable, f"of {total} recordings of {origin.name} cannot be read and score as failures")
    unnamed = sorted(path.name for path in untranscribed)
    notes += _counted(unnamed, f"recordings of {origin.name} have no transcript and are left out")
    if origin.expected is not None and total != origin.expected:
        notes.append(
            f"{origin.name} has {origin.expected} clips as published, here are {total}: scores are not comparable with "
            "published ones."
        )
    for note in notes:
        logger.warning("%s: %s", where, note)
    return Dataset(name=origin.name, utterances=utterances, notes=notes)


def transcript_lines(path: Path) -> list[tuple[str, str]]:
    """Name and text of each line `name text`, separated by blanks or a tab; empty lines are passed over.

    Raises:
        DataError: the file cannot be read, or a line has no text; names `path:line`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; unpack the set again") from error
    found = []
    for number, line in enumerate(decode_utf8(content, str(path)).splitlines(), 1):
        name, _, text = one_line(line).partition(" ")
        if name and not text:
            raise DataError(f"{path}:{number}: {name!r} has no text behind it; expected `name text`")
        if name:
            found.append((name, text))
    return found


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; none where it is no folder."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


def _utterance(entry: Listed, origin: Origin, unreadable: list[str]) -> Utterance:
    duration_s = 0.0
    if entry.audio.is_file():
        try:
            duration_s = audio_info(entry.audio).duration_s
        except DataError:
            unreadable.append(entry.name)
    return Utterance(
        id=safe_id(entry.name),
        audio=str(entry.audio),
        text=entry.text,
        language=origin.language,
        speaker=entry.speaker,
        duration_s=round(duration_s, 6),
        licence=origin.licence,
        source=origin.source,
    )


def _counted(names: Sequence[str], what: str) -> list[str]:
    more = ", …" if len(names) > _NAMED else ""
    return [f"{len(names)} {what}: {', '.join(names[:_NAMED])}{more}."] if names else []
