"""The fine-tuning JSONL of the OpenMOSS repositories, single utterances (Delay, Local) and conversations (Realtime).

Source: MOSS-TTS moss_tts_delay/finetuning and moss_tts_realtime/finetuning @58b20a0 (field names and precedence).
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moss.data.files import decode_utf8, parse_json_object
from moss.data.sources import Candidate, one_line, safe_id
from moss.errors import DataError

logger = logging.getLogger(__name__)

_PREPARED = ("audio_codes", "ref_audio_codes", "reference_audio_codes")
_REFERENCE_FIELDS = ("reference", "reference_audio", "ref_audio")
_OWN = {"id", "audio", "text", "language", "speaker", "licence", *_PREPARED, *_REFERENCE_FIELDS}


def openmoss_source(path: Path, *, language: str = "", licence: str = "") -> Iterator[Candidate]:
    """Each line of the JSONL, or each spoken turn of a conversation line, as one candidate.

    All fields but the prepared code arrays are kept in `extra`; references become one list, `extra["reference"]`,
    nulls kept, `reference` winning over `reference_audio` over `ref_audio`. Relative paths are taken from the JSONL's
    folder, and from the working directory where only that exists. Code arrays of `prepare_data` are not used, since
    nothing in the file tells which tokenizer made them.

    Args:
        path: The JSONL file.
        language: For lines that do not name one.
        licence: For lines that do not name one.

    Raises:
        DataError: Missing file, or a line that is no JSON object; names `path:line`.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    with_codes = 0
    for number, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        default_id = f"{path.stem}-{number:06d}"
        try:
            line = decode_utf8(raw, f"line {number}")
        except DataError as error:
            yield Candidate(id=safe_id(default_id), audio=path, text="", language=language, problem=str(error))
            continue
        row = parse_json_object(line, f"{path}:{number}")
        with_codes += any(name in row for name in _PREPARED)
        common = {"language": language, "licence": licence} | {
            name: str(row[name]) for name in ("language", "licence", "speaker") if row.get(name)
        }
        row_id = str(row.get("id") or default_id)
        if "conversations" in row:
            yield from _turns(row, row_id, path, common, f"{path}:{number}")
        else:
            yield _single(row, row_id, path, common)
    if with_codes:
        logger.warning("%s: code arrays in %d lines are not used; 02_encode_codes.py makes new ones", path, with_codes)


def _single(row: dict[str, Any], row_id: str, path: Path, common: dict[str, str]) -> Candidate:
    extra = {name: value for name, value in row.items() if name not in _OWN}
    problem, references = "", []
    try:
        references = _references(row, path)
    except DataError as error:
        problem = str(error)
    if any(name in row for name in _REFERENCE_FIELDS):
        extra["reference"] = [None if reference is None else str(reference) for reference in references]
    audio = row.get("audio")
    if not isinstance(audio, str) or not audio:
        problem = f"field 'audio' is {audio!r}, expected a path"
        audio = ""
    text = row.get("text")
    return Candidate(
        id=safe_id(row_id),
        audio=_resolve(audio, path) if audio else path,
        text=one_line(text) if isinstance(text, str) else "",
        source="openmoss-jsonl",
        references=tuple(reference for reference in references if reference is not None),
        extra=extra,
        problem=problem,
        **common,
    )


def _turns(row: dict[str, Any], row_id: str, path: Path, common: dict[str, str], where: str) -> Iterator[Candidate]:
    turns = row["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f"{where}: field 'conversations' must be a list of objects with role, text and wav")
    rest = {name: value for name, value in row.items() if name not in _OWN | {"conversations", "ref_wav"}}
    reference = row.get("ref_wav")
    for number, turn in enumerate(turns):
        wav = turn.get("wav")
        extra = rest | {"conversation": row_id, "turn": number, "role": turn.get("role", "")}
        if reference:
            extra["reference"] = [str(_resolve(str(reference), path))]
        yield Candidate(
            id=safe_id(f"{row_id}-turn{number:03d}"),
            audio=_resolve(str(wav), path) if wav else path,
            text=one_line(str(turn.get("text") or "")),
            source="openmoss-jsonl",
            references=(_resolve(str(reference), path),) if reference else (),
            extra=extra,
            left_out="" if wav else "turn without a recording",
            **common,
        )


def _references(row: dict[str, Any], path: Path) -> list[Path | None]:
    name = next((name for name in _REFERENCE_FIELDS if row.get(name) is not None), None)
    if name is None:
        return []
    value = row[name]
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(item is None or isinstance(item, str) for item in listed):
        raise DataError(f"field {name!r} is {value!r}, expected a path or a list of paths and nulls")
    return [None if item is None else _resolve(item, path) for item in listed]


def _resolve(audio: str, jsonl: Path) -> Path:
    beside = jsonl.parent / audio
    if not beside.exists() and Path(audio).exists():
        return Path(audio).absolute()
    return beside
