"""What is asked of a generator, and where such requests come from: a command line, a JSONL file, a manifest."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moss.data.files import numbered_jsonl
from moss.data.manifest import Utterance
from moss.data.order import keyed_generator
from moss.data.split import HELDOUT, TRAIN
from moss.errors import DataError, GenerationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The human recording of the same sentence, for scoring."""

    wav: str
    duration_s: float
    speaker: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One thing to say.

    Attributes:
        id: Names the files; unique in a run.
        text: The words.
        language: Two-letter tag or full English name; empty for none.
        tokens: Wanted length in frames, None lets the model decide.
        reference: Recording whose voice is to be used.
        group: Label that evaluation tells apart, e.g. "seen" and "heldout".
        target: The human recording, if there is one.
    """

    id: str
    text: str
    language: str = ""
    tokens: int | None = None
    reference: str | None = None
    group: str = ""
    target: Target | None = None


def read_requests(path: Path) -> list[Request]:
    """Requests from a JSONL file with the fields of `Request`; `id` may be missing.

    Raises:
        DataError: A line is not an object, has an unknown or mistyped field or no text, naming `path:line`; or the
            file holds no request.
        GenerationError: Two requests with one id.
    """
    requests = []
    known = set(Request.__slots__)
    for number, row in numbered_jsonl(path):
        unknown = sorted(set(row) - known)
        if unknown:
            raise DataError(f"{path}:{number}: unknown field {unknown[0]!r}; a request has {', '.join(sorted(known))}")
        text = row.get("text")
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{path}:{number}: no text")
        requests.append(_request(row, number, f"{path}:{number}"))
    if not requests:
        raise DataError(f"{path}: holds no request; write one JSON object a line, with at least a text")
    check_unique(requests)
    return requests


def _request(row: dict[str, Any], number: int, where: str) -> Request:
    for name, value in row.items():
        if name == "tokens":
            if value is not None and (type(value) is not int or value < 1):
                raise DataError(f"{where}: tokens={value!r}, expected a number of frames, at least 1, or null")
        elif name != "target" and not (isinstance(value, str) or (name == "reference" and value is None)):
            raise DataError(f"{where}: {name}={value!r}, expected a text")
    target = row.get("target")
    try:
        wanted = None if target is None else Target(**target)
    except TypeError as error:
        raise DataError(f"{where}: target={target!r}, expected wav, duration_s and maybe speaker") from error
    return Request(**{"id": f"r{number:06d}", **row, "target": wanted})


def check_unique(requests: Sequence[Request]) -> None:
    """Refuse two requests that would overwrite each other.

    Raises:
        GenerationError: Names the id.
    """
    seen: set[str] = set()
    for request in requests:
        if request.id in seen:
            raise GenerationError(f"request id {request.id!r} is given twice; ids name the output files")
        if "/" in request.id or request.id in ("", ".", ".."):
            raise GenerationError(f"request id {request.id!r} cannot name a file")
        seen.add(request.id)


def draw_requests(
    utterances: Sequence[Utterance], per_group: int, min_words: int, max_duration_s: float, seed: int
) -> list[Request]:
    """Sentences of a manifest to be spoken again: as many trained as held-out ones, drawn by the seed.

    A text that occurs twice is drawn once, and the choice depends on each text alone.

    Raises:
        GenerationError: A split has fewer such sentences than asked for.
    """
    requests = []
    for split, group in ((TRAIN, "seen"), (HELDOUT, "heldout")):
        pool: dict[str, Utterance] = {}
        for row in utterances:
            fits = len(row.text.split()) >= min_words and row.duration_s <= max_duration_s
            if row.split == split and row.audio and fits:
                pool.setdefault(row.text, row)
        if len(pool) < per_group:
            raise GenerationError(
                f"split {split!r} has {len(pool)} sentences of at least {min_words} words and at most "
                f"{max_duration_s:g} s, {per_group} are asked for"
            )
        ranked = sorted(pool.values(), key=lambda row: keyed_generator("request", seed, row.text).random())
        for row in sorted(ranked[:per_group], key=lambda row: row.id):
            requests.append(
                Request(
                    id=row.id,
                    text=row.text,
                    language=row.language,
                    group=group,
                    target=Target(wav=row.audio, duration_s=row.duration_s, speaker=row.speaker),
                )
            )
    return requests


def request_seed(run_seed: int, request: Request) -> int:
    """The seed of a request's own random stream; no other request has a say in it."""
    digest = hashlib.sha256(f"{run_seed}\x1f{request.id}\x1f{request.text}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
