"""`utterances.jsonl`: one recording with its text a line.

Audio paths below the manifest's folder are stored relative to it, so the folder can be moved; `read_manifest` gives
them back as paths that open from anywhere.
"""

import dataclasses
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moss.data.files import numbered_jsonl, write_jsonl
from moss.data.split import HELDOUT, REFERENCE, TRAIN
from moss.errors import DataError

_ID = re.compile(r"[\w+=@-]+")
_MAX_ID_BYTES = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """One recording and what is known of it."""

    id: str
    """Unique in the manifest; letters, digits and _ + = @ - only (it becomes a file name inside shards)."""
    audio: str
    """Path of the recording; empty for an evaluation request that has no recording of its own."""
    text: str
    language: str
    """Two-letter code, or empty when unknown."""
    speaker: str = ""
    duration_s: float = 0.0
    sha256: str = ""
    """Of the audio file's bytes."""
    licence: str = ""
    split: str = ""
    """"train", "heldout", "reference" (a clip that others take their voice from, no example itself), or empty when no
    split was made."""
    source: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    """Everything else the source said: instruction, tokens, quality, sound_event, ambient_sound, reference, ...

    `reference_ids` names the utterances that lend their voices, speaker after speaker, null for one without.
    `as_recorded: true` keeps a reference clip at its level (Realtime), others are brought to -20 dBFS.
    """

    @property
    def is_levelled(self) -> bool:
        """Whether the clip is brought to the level of references before it is encoded."""
        return self.split == REFERENCE and not self.extra.get("as_recorded")

    @property
    def max_channels(self) -> int | None:
        """Most channels the recording may have where it is read; None is any number.

        A recording with more than two is in a manifest only because the user accepted the mean of its channels.
        """
        return None if "downmixed_channels" in self.extra else 2


_FIELDS = {f.name: f for f in dataclasses.fields(Utterance)}
_TYPES: dict[str, type | tuple[type, ...]] = {"duration_s": (int, float), "extra": dict}
"""Of the fields that are not strings."""
_REQUIRED = ("id", "audio", "text", "language")


def check_id(utterance_id: str, where: str) -> None:
    """Refuse an id that cannot name a file inside a shard.

    Raises:
        DataError: Characters outside letters, digits and _ + = @ -, or more than 160 bytes.
    """
    if not _ID.fullmatch(utterance_id) or len(utterance_id.encode()) > _MAX_ID_BYTES:
        raise DataError(
            f"{where}: id {utterance_id!r} cannot name a shard member; use letters, digits and _ + = @ - only, at most "
            f"{_MAX_ID_BYTES} bytes"
        )


def read_manifest(path: Path | str, *, needs_text: bool = True) -> list[Utterance]:
    """Read and check a manifest; relative audio paths are resolved against its folder.

    Args:
        path: The manifest.
        needs_text: Whether a clip without a text is an error; a tokenizer learns from sound alone.

    Raises:
        DataError: Missing file, bad JSON, unknown, missing or mistyped fields, bad or duplicate ids; names `path:line`.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist; make it with data_prep/01_manifest.py")
    utterances: list[Utterance] = []
    seen: dict[str, int] = {}
    for number, row in numbered_jsonl(path):
        utterance = _utterance(row, f"{path}:{number}", needs_text)
        if utterance.id in seen:
            raise DataError(f"{path}:{number}: duplicate id {utterance.id!r}, first used in line {seen[utterance.id]}")
        seen[utterance.id] = number
        audio = str(path.parent / utterance.audio) if utterance.audio else ""
        utterances.append(dataclasses.replace(utterance, audio=audio))
    return utterances


def write_manifest(path: Path | str, utterances: Iterable[Utterance]) -> None:
    """Write a manifest atomically; audio below its folder is stored as a relative path, other audio as absolute."""
    folder = Path(path).absolute().parent
    write_jsonl(path, (_row(utterance, folder) for utterance in utterances))


def stored_path(audio: Path | str, folder: Path) -> str:
    """How a recording's path is written in a file that lies in `folder`."""
    absolute = Path(os.path.abspath(audio))
    try:
        return absolute.relative_to(os.path.abspath(folder)).as_posix()
    except ValueError:
        return str(absolute)


def _row(utterance: Utterance, folder: Path) -> dict[str, Any]:
    row = dataclasses.asdict(utterance)
    row["audio"] = stored_path(utterance.audio, folder) if utterance.audio else ""
    return row


def _utterance(row: dict[str, Any], where: str, needs_text: bool) -> Utterance:
    unknown = sorted(set(row) - set(_FIELDS))
    missing = [name for name in _REQUIRED if name not in row]
    if unknown or missing:
        raise DataError(f"{where}: fields missing {missing}, unknown {unknown}; expected {sorted(_FIELDS)}")
    for name, value in row.items():
        kind = _TYPES.get(name, str)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise DataError(f"{where}: field {name!r} got {value!r}, expected {_type_name(kind)}")
    duration_s = row.get("duration_s", 0.0)
    if not 0 <= duration_s < math.inf:
        raise DataError(f"{where}: duration_s {duration_s}, expected seconds, 0 or more; 0 is unknown")
    check_id(row["id"], where)
    split = row.get("split", "")
    if split not in ("", TRAIN, HELDOUT, REFERENCE):
        raise DataError(f"{where}: split {split!r}, expected '{TRAIN}', '{HELDOUT}', '{REFERENCE}' or ''")
    if needs_text and not (row["text"].strip() or split == REFERENCE or row.get("extra", {}).get("ambient_sound")):
        raise DataError(
            f"{where}: empty text; only clips of split '{REFERENCE}' and sounds described by extra.ambient_sound may "
            "have none"
        )
    return Utterance(**row)


def _type_name(kind: type | tuple[type, ...]) -> str:
    return " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
