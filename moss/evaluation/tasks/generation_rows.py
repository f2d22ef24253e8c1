"""Reads `generations.jsonl`: one row per request, checked, with absolute paths."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moss.data.files import numbered_jsonl
from moss.errors import EvaluationError, MossError
from moss.evaluation.items import duration_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One row of `generations.jsonl`, with absolute paths; only what scoring needs."""

    request_id: str
    text: str
    language: str
    group: str
    wav: Path | None
    error: str | None
    reference: Path | None
    target: Path | None
    target_s: float | None
    reconstruction: Path | None
    reconstruction_error: str | None
    speaker: str


def read_generations(folder: Path, reconstruction: Path | None = None) -> list[Generation]:
    """Read a generation folder.

    Args:
        folder: Holds generations.jsonl; relative paths in it start here, else at the working directory.
        reconstruction: Folder of `<request_id>.wav`, for rows without a `reconstruction` of their own.

    Raises:
        DataError: the file is missing or a line is not a JSON object (path:line).
        EvaluationError: no rows, a row without its fields, or a request id used twice (path:line).
    """
    path = folder / "generations.jsonl"
    generations: list[Generation] = []
    first_line: dict[str, int] = {}
    for number, row in numbered_jsonl(path):
        generation = _generation(row, folder, reconstruction, f"{path}:{number}")
        if generation.request_id in first_line:
            raise EvaluationError(
                f"{path}:{number}: request id {generation.request_id!r} is used twice, first in line "
                f"{first_line[generation.request_id]}; scores would be counted twice, so keep one of the rows"
            )
        first_line[generation.request_id] = number
        generations.append(generation)
    if not generations:
        raise EvaluationError(f"{path} has no rows, so there is nothing to score; did generation fail?")
    return generations


def _generation(row: Mapping[str, Any], folder: Path, reconstruction: Path | None, where: str) -> Generation:
    request_id = _text_field(row, "request_id", where)
    if not request_id:
        raise EvaluationError(f"{where}: request_id is empty; give each row an id of its own")
    target = _clip_field(row, "target", where)
    made = _clip_field(row, "reconstruction", where)
    made_wav = _path(made.get("wav"), folder)
    if made_wav is None and reconstruction is not None and "reconstruction" not in row:
        made_wav = reconstruction / f"{request_id}.wav"
    target_wav = _path(target.get("wav"), folder)
    return Generation(
        request_id=request_id,
        text=_text_field(row, "text", where),
        language=_text_field(row, "language", where),
        group=_text_field(row, "group", where) if row.get("group") is not None else "",
        wav=_path(_optional_text(row, "wav", where), folder),
        error=_optional_text(row, "error", where),
        reference=_path(_optional_text(row, "reference", where), folder),
        target=target_wav,
        target_s=_target_s(target, target_wav, where),
        reconstruction=made_wav,
        reconstruction_error=None if made_wav else made.get("error") or ("no wav" if made else None),
        speaker=_optional_text(row, "speaker", where) or target.get("speaker") or "",
    )


def _target_s(target: Mapping[str, Any], wav: Path | None, where: str) -> float | None:
    stated = target.get("duration_s")
    if stated is not None:
        if isinstance(stated, bool) or not isinstance(stated, int | float) or not stated > 0:
            raise EvaluationError(f"{where}: target.duration_s is {stated!r}, expected seconds above 0")
        return float(stated)
    if wav is None:
        return None
    try:
        return duration_s(wav)
    except MossError as error:
        raise EvaluationError(f"{where}: the target clip has no length: {error}") from error


def _clip_field(row: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    value = row.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(value.get(key), str | None) for key in ("wav", "error")):
        raise EvaluationError(f'{where}: {name} is {value!r}, expected {{"wav": path}} or null')
    return value


def _text_field(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise EvaluationError(f"{where}: {name} is {value!r}, expected a text; is this a generations.jsonl?")
    return value


def _optional_text(row: Mapping[str, Any], name: str, where: str) -> str | None:
    return None if row.get(name) is None else _text_field(row, name, where)


def _path(value: str | None, folder: Path) -> Path | None:
    """Absolute path of a clip: from the folder, or from the working directory where only that leads to a file."""
    if value is None:
        return None
    inside = folder / value
    return Path(value).absolute() if not inside.exists() and Path(value).exists() else inside.absolute()
