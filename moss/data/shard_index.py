"""`index.json` of a shard folder, typed: which tokenizer made the codes, which utterances lie where.

Beside it lie the tars; each utterance is two members, `{id}.json` and `{id}.codes.npy`, and the index holds their
byte ranges, so that any example is read without opening the tar. Not here: reading or writing the tars.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from moss.data.files import decode_utf8, parse_json_object, write_bytes
from moss.errors import DataError
from moss.spec import TokenizerSpec

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Version 1 has no `extra` in its entries; `ShardDataset` then takes it from the tars."""
INDEX_NAME = "index.json"

PROMPT_FIELDS = (
    "instruction",
    "tokens",
    "quality",
    "sound_event",
    "ambient_sound",
    "scene",
    "reference_ids",
    "conversation",
    "turn",
    "role",
)
"""Names in `extra` that decide what a model is trained on."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerCard:
    """The tokenizer that made a folder of codes; `num_codebooks` is the number stored, not the number it has."""

    name: str
    fingerprint: str
    sampling_rate_hz: int
    samples_per_frame: int
    num_codebooks: int
    codebook_size: int
    num_audio_channels: int = 1
    """What it was given: 1 mono, 2 stereo. Files say it only where it is not 1."""

    @property
    def spec(self) -> TokenizerSpec:
        """The shape facts of the stored codes."""
        return TokenizerSpec(
            sampling_rate_hz=self.sampling_rate_hz,
            samples_per_frame=self.samples_per_frame,
            num_codebooks=self.num_codebooks,
            codebook_size=self.codebook_size,
            num_audio_channels=self.num_audio_channels,
        )

    def row(self) -> dict[str, Any]:
        """The fields as files hold them: a mono tokenizer's as before there were others."""
        row = dataclasses.asdict(self)
        if self.num_audio_channels == 1:
            del row["num_audio_channels"]
        return row

    def describe(self) -> str:
        """Name, fingerprint and number of codebooks, for messages."""
        channels = ", stereo" if self.num_audio_channels == 2 else ""
        return f"{self.name} {self.fingerprint} ({self.num_codebooks} codebooks{channels})"


@dataclass(frozen=True, slots=True, kw_only=True)
class UtteranceEntry:
    """One utterance of a shard: what the loader needs to plan, and where its two members lie."""

    id: str
    frames: int
    text: str
    language: str
    speaker: str
    split: str
    json_offset: int
    json_bytes: int
    codes_offset: int
    codes_bytes: int
    extra: dict[str, Any] | None = None
    """Everything else that is known of it; None in an index of version 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """One tar file; `source_digest` names what it was made from, so that a restart can tell whether it is current."""

    file: str
    sha256: str
    bytes: int
    source_digest: str
    utterances: tuple[UtteranceEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardIndex:
    """The whole folder."""

    format_version: int
    tokenizer: TokenizerCard
    dataset_fingerprint: str
    utterances: int
    frames: int
    shards: tuple[ShardRecord, ...]


def make_index(tokenizer: TokenizerCard, shards: Iterable[ShardRecord]) -> ShardIndex:
    """Add up the shards and compute the dataset fingerprint."""
    shards = tuple(shards)
    entries = [entry for shard in shards for entry in shard.utterances]
    return ShardIndex(
        format_version=FORMAT_VERSION,
        tokenizer=tokenizer,
        dataset_fingerprint=dataset_fingerprint(tokenizer, entries),
        utterances=len(entries),
        frames=sum(entry.frames for entry in entries),
        shards=shards,
    )


def dataset_fingerprint(tokenizer: TokenizerCard, entries: Iterable[UtteranceEntry]) -> str:
    """Hash of the tokenizer fingerprint and the sorted (id, frames, text) of all utterances; 16 hex digits.

    What `extra` adds to a prompt counts too, where there is any. It does not depend on how utterances are spread over
    shards.
    """
    digest = hashlib.sha256(f"{tokenizer.fingerprint} {tokenizer.num_codebooks}\n".encode())
    for entry in sorted(entries, key=lambda entry: (entry.id, entry.frames, entry.text)):
        row: list[Any] = [entry.id, entry.frames, entry.text]
        prompt = {name: entry.extra[name] for name in PROMPT_FIELDS if name in entry.extra} if entry.extra else {}
        row += [prompt] if prompt else []
        digest.update(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()[:16]


def write_index(folder: Path, index: ShardIndex) -> None:
    """Write `index.json` atomically."""
    write_bytes(folder / INDEX_NAME, to_json(index))


def to_json(value: ShardIndex | ShardRecord) -> bytes:
    """The JSON text of an index or of one shard's part of it."""
    row = dataclasses.asdict(value)
    if isinstance(value, ShardIndex):
        row["tokenizer"] = value.tokenizer.row()
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()


def read_index(folder: Path | str) -> ShardIndex:
    """Read and check `index.json`.

    Raises:
        DataError: No index (the shards were never finished), another format version, or a damaged file.
    """
    path = Path(folder) / INDEX_NAME
    if not path.is_file():
        raise DataError(
            f"{path} does not exist: the shards are missing or unfinished; run data_prep/03_write_shards.py"
        )
    row = parse_json_object(decode_utf8(path.read_bytes(), str(path)), str(path))
    version = row.get("format_version")
    if version not in READABLE_VERSIONS:
        readable = " and ".join(map(str, READABLE_VERSIONS))
        raise DataError(
            f"{path}: format_version {version!r}, this program reads {readable}; write the shards again with "
            "data_prep/03_write_shards.py"
        )
    try:
        tokenizer = _typed(TokenizerCard, row["tokenizer"])
        shards = tuple(parse_shard_record(shard, version) for shard in row["shards"])
        return _typed(ShardIndex, row | {"tokenizer": tokenizer, "shards": shards})
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged index ({error}); run data_prep/03_write_shards.py again") from error


def parse_shard_record(row: dict[str, Any], version: int = FORMAT_VERSION) -> ShardRecord:
    """One shard's part of an index of some format version.

    Raises:
        KeyError: A field is missing.
        TypeError: A field is unknown or has the wrong type.
    """
    return _typed(ShardRecord, row | {"utterances": tuple(_entry(u, version) for u in row["utterances"])})


def _entry(row: dict[str, Any], version: int) -> UtteranceEntry:
    if version == 1:
        return _typed(UtteranceEntry, row | {"extra": None})
    if not isinstance(row["extra"], dict):
        raise TypeError(f"extra is {row['extra']!r}, expected an object")
    return _typed(UtteranceEntry, row)


def _typed(cls: type[T], row: dict[str, Any]) -> T:
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name not in row and field.default is not dataclasses.MISSING:
            continue
        if field.type in (int, str) and type(row[field.name]) is not field.type:
            raise TypeError(f"{field.name} is {row[field.name]!r}, expected {field.type.__name__}")
    return cls(**row)
