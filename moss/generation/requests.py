"""What is asked of a generator, and where such requests come from: a command line, a JSONL file, a manifest."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moss.data.files import numbered_jsonl
from moss.data.manifest import Utterance
from moss.data.order import keyed_generator
from moss.data.split import HELDOUT, TRAIN
from moss.errors import DataError, GenerationError
from moss.generation.presets import OVERRIDES
from moss.generation.references import Reference


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
        id: Names the files, unique in a run; the program makes one up where it is empty.
        text: The words; None for a sound effect. Dialogues mark their speakers: `[S1] ... [S2] ...`.
        language: Two-letter tag or full English name; empty for none.
        tokens: Wanted length in frames, None lets the model decide.
        duration_s: The same in seconds.
        reference: Recording whose voice is to be used; see `moss.generation.references.Reference`.
        references: One for each speaker of a dialogue, None for a voice of the model's choice.
        instruction: Description of the wanted voice (voice_generator).
        ambient_sound: Description of the wanted sound (sound_effect).
        sound_event: Further field of the prompt.
        quality: Further field of the prompt.
        scene: Further field of the prompt (TTSD-v1.0's format).
        prefix: Recording that is to be carried on; what is made does not contain it.
        prompt_text: The words of `prefix`; not needed if it is an earlier generation.
        prompt_texts: The words of each of `references` (None for a speaker without one): the dialogue then carries on
            these clips.
        seed: Of this request's own random stream; None makes one from the run's seed, the id and the text.
        max_chars: Speak a longer text in parts of at most so many characters; None only where it does not fit.
        group: Label that evaluation tells apart, e.g. "seen" and "heldout".
        target: The human recording, if there is one.
    """

    id: str = ""
    text: str | None = None
    language: str = ""
    tokens: int | None = None
    duration_s: float | None = None
    reference: Reference | None = None
    references: Sequence[Reference | None] | None = None
    instruction: str | None = None
    ambient_sound: str | None = None
    sound_event: str | None = None
    quality: str | None = None
    scene: str | None = None
    prefix: Reference | None = None
    prompt_text: str | None = None
    prompt_texts: Sequence[str | None] | None = None
    seed: int | None = None
    max_chars: int | None = None
    group: str = ""
    target: Target | None = None


_TEXTS = {"id", "text", "language", "group"}
_OPTIONAL_TEXTS = {
    "reference",
    "instruction",
    "ambient_sound",
    "sound_event",
    "quality",
    "scene",
    "prefix",
    "prompt_text",
}
_COUNTS = {"tokens": "a number of frames, at least 1, or null", "max_chars": "a number, at least 1, or null"}
_FIRST_FIELDS = ("id", "text", "language", "tokens", "reference", "group", "target")
"""Those of the first format; the others count towards a request's hash only where they are set."""


def read_requests(path: Path) -> list[Request]:
    """Requests from a JSONL file with the fields of `Request`; `id` may be missing.

    Raises:
        DataError: A line is not an object, has an unknown or mistyped field or neither text nor ambient_sound, naming
            `path:line`; or the file holds no request.
        GenerationError: Two requests with one id.
    """
    requests = []
    known = set(Request.__slots__)
    for number, row in numbered_jsonl(path):
        unknown = sorted(set(row) - known)
        if unknown:
            raise DataError(f"{path}:{number}: unknown field {unknown[0]!r}; a request has {', '.join(sorted(known))}")
        text = row.get("text")
        if not (isinstance(text, str) and text.strip()) and not (text is None and row.get("ambient_sound")):
            raise DataError(f"{path}:{number}: no text; a request needs one, or an ambient_sound for sound effects")
        requests.append(_request(row, number, f"{path}:{number}"))
    if not requests:
        raise DataError(f"{path}: holds no request; write one JSON object a line, with at least a text")
    check_unique(requests)
    return requests


def _request(row: dict[str, Any], number: int, where: str) -> Request:
    for name, value in row.items():
        expected = None if name == "target" else _mistyped(name, value)
        if expected is not None:
            raise DataError(f"{where}: {name}={value!r}, expected {expected}")
    target = row.get("target")
    try:
        wanted = None if target is None else Target(**target)
    except TypeError as error:
        raise DataError(f"{where}: target={target!r}, expected wav, duration_s and maybe speaker") from error
    return Request(**{"id": f"r{number:06d}", **row, "target": wanted})


def _mistyped(name: str, value: Any) -> str | None:
    """What a field of a JSON request should have been, None if it is."""
    fits = value is None and name not in _TEXTS - {"text"}
    expected = "a text"
    if name in _COUNTS:
        fits, expected = fits or (type(value) is int and value >= 1), _COUNTS[name]
    elif name == "seed":
        fits, expected = fits or (type(value) is int and value >= 0), "a whole number, at least 0, or null"
    elif name == "duration_s":
        fits, expected = fits or (type(value) in (int, float) and value > 0), "seconds, more than 0, or null"
    elif name in ("references", "prompt_texts"):
        fits = fits or (isinstance(value, list) and all(isinstance(entry, str | None) for entry in value))
        expected = "a list of texts, one for each speaker, null for a speaker without a clip"
    else:
        fits = fits or isinstance(value, str)
    return None if fits else expected


def request_json(request: Request) -> str:
    """A request as text, for hashes that tell whether it changed.

    Raises:
        GenerationError: A reference is not a path or id.
    """
    content = {name: getattr(request, name) for name in Request.__slots__}
    content["target"] = None if request.target is None else asdict(request.target)
    kept = {name: value for name, value in content.items() if name in _FIRST_FIELDS or value is not None}
    try:
        return json.dumps(kept, sort_keys=True, default=_path_text)
    except TypeError as error:
        raise GenerationError(
            f"request {request.id!r}: references of requests that are written to a folder must be paths, {error}"
        ) from error


def _path_text(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"got a {type(value).__name__}")


def request_from(fields: Mapping[str, Any]) -> Request:
    """A request from its fields by name.

    Raises:
        GenerationError: A name that no request has.
    """
    for name in fields:
        if name not in Request.__slots__:
            raise GenerationError(
                f"unknown field or setting {name!r}; a request has {', '.join(Request.__slots__)}; settings are "
                f"{', '.join(OVERRIDES)}"
            )
    return Request(**fields)


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


def request_seed(run_seed: int, request: Request, *, plain: bool = False) -> int:
    """The seed of a request's own random stream; no other request has a say in it.

    A request with a seed of its own draws by that and its text, whatever it is called.

    Args:
        run_seed: Of requests that have none.
        request: With its id and text.
        plain: Realtime: a seed of its own is used as it is, because a conversation cannot know its text.
    """
    if plain and request.seed is not None:
        return request.seed
    own = f"{run_seed}\x1f{request.id}" if request.seed is None else f"{request.seed}\x1f"
    digest = hashlib.sha256(f"{own}\x1f{request.text}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def turn_seed(seed: int, turn: int) -> int:
    """The seed of a session's turn; the first turn has the session's own, so that it equals an offline call's."""
    if turn == 0:
        return seed
    digest = hashlib.sha256(f"{seed}\x1f{turn}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
