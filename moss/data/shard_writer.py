"""Write shards: plain tars of `{id}.json` + `{id}.codes.npy` that the stock webdataset reads, and their index.

The bytes of a tar depend on its utterances only (fixed times, owners and order). A shard exists under its name only
when it is complete, its part of the index is kept beside it until `index.json` is written last: a run that was killed
goes on with the first missing shard.
"""

import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moss.data.files import atomic_write, decode_utf8, parse_json_object, remove_leftovers, sha256_file, write_bytes
from moss.data.manifest import Utterance, check_id
from moss.data.progress import track
from moss.data.shard_index import (
    FORMAT_VERSION,
    INDEX_NAME,
    ShardIndex,
    ShardRecord,
    TokenizerCard,
    UtteranceEntry,
    make_index,
    parse_shard_record,
    read_index,
    to_json,
    write_index,
)
from moss.errors import DataError

CodeArray = npt.NDArray[np.integer[Any]]

_PART_SUFFIX = ".part.json"


@dataclass(frozen=True, slots=True)
class CodedUtterance:
    """An utterance with its codes, or the `.npy` file that holds them, shape (frames, codebooks)."""

    utterance: Utterance
    num_samples: int
    """Waveform samples at the tokenizer's rate; frames == ceil(num_samples / samples_per_frame)."""
    codes: CodeArray | Path


def write_shards(
    folder: Path | str, coded: Sequence[CodedUtterance], tokenizer: TokenizerCard, utterances_per_shard: int = 1024
) -> ShardIndex:
    """Write all shards of a folder and then its index; shards that are already there and current are kept.

    Raises:
        DataError: No utterances; a bad or duplicate id; codes of the wrong shape, type or range; the folder holds
            shards of another tokenizer; the disk is full (finished shards are kept).
    """
    folder = Path(folder)
    if utterances_per_shard < 1:
        raise DataError(f"utterances_per_shard={utterances_per_shard}, expected at least 1")
    if not coded:
        raise DataError(f"no utterances to write to {folder}; check the manifest and the encoded codes")
    _check_ids(coded)
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    starts = range(0, len(coded), utterances_per_shard)
    plan = {_shard_name(n): coded[start : start + utterances_per_shard] for n, start in enumerate(starts)}
    wanted = {name: _source_digest(part, tokenizer) for name, part in plan.items()}
    known = _finished_shards(folder, tokenizer)
    current = {
        name: _with_extra(record, plan[name])
        for name, record in known.items()
        if wanted.get(name) == record.source_digest
    }
    if (folder / INDEX_NAME).is_file() and len(current) == len(known) == len(plan):
        index = read_index(folder)
        if index.format_version == FORMAT_VERSION:
            return index
    _forget_index(folder, current, known)
    for name in track(list(plan), "writing shards", len(plan)):
        if name not in current:
            current[name] = _write_shard(folder, name, plan[name], wanted[name], tokenizer)
            write_bytes(folder / (name + _PART_SUFFIX), to_json(current[name]))
    index = make_index(tokenizer, (current[name] for name in plan))
    write_index(folder, index)
    for part in folder.glob("*" + _PART_SUFFIX):
        part.unlink()
    return index


def to_npy(codes: CodeArray) -> bytes:
    """The bytes of a `.npy` file holding the codes as uint16."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(codes, dtype=np.uint16), allow_pickle=False)
    return buffer.getvalue()


def check_codes(codes: CodeArray, num_samples: int, tokenizer: TokenizerCard, where: str) -> None:
    """Refuse codes that are not (ceil(num_samples / samples_per_frame), num_codebooks) integers in range.

    Raises:
        DataError: Names `where`, what was got and what was expected.
    """
    expected = (tokenizer.spec.num_frames(num_samples), tokenizer.num_codebooks)
    if codes.shape != expected or not np.issubdtype(codes.dtype, np.integer):
        raise DataError(
            f"{where}: codes are {codes.dtype} {codes.shape}, expected integers of shape {expected} (frames, "
            f"codebooks) for {num_samples} samples; encode the clip again"
        )
    lowest, highest = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
    if lowest < 0 or highest >= tokenizer.codebook_size:
        raise DataError(f"{where}: codes range over {lowest}..{highest}, expected 0..{tokenizer.codebook_size - 1}")


def _write_shard(
    folder: Path, name: str, coded: Sequence[CodedUtterance], digest: str, tokenizer: TokenizerCard
) -> ShardRecord:
    entries = []
    with (
        atomic_write(folder / name) as temporary,
        tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT, encoding="utf-8") as tar,
    ):
        for item in coded:
            entries.append(_add_utterance(tar, item, tokenizer))
    path = folder / name
    return ShardRecord(
        file=name,
        sha256=sha256_file(path),
        bytes=path.stat().st_size,
        source_digest=digest,
        utterances=tuple(entries),
    )


def _add_utterance(tar: tarfile.TarFile, item: CodedUtterance, tokenizer: TokenizerCard) -> UtteranceEntry:
    utterance = item.utterance
    codes = _load_codes(item.codes) if isinstance(item.codes, Path) else item.codes
    where = str(item.codes) if isinstance(item.codes, Path) else f"utterance {utterance.id}"
    check_codes(codes, item.num_samples, tokenizer, where)
    metadata = {
        "id": utterance.id,
        "text": utterance.text,
        "language": utterance.language,
        "speaker": utterance.speaker,
        "split": utterance.split,
        "num_samples": item.num_samples,
        "sampling_rate_hz": tokenizer.sampling_rate_hz,
        "frames": codes.shape[0],
        "licence": utterance.licence,
        "source": utterance.source,
        "extra": utterance.extra,
    }
    json_offset, json_bytes = _add_member(
        tar, f"{utterance.id}.json", json.dumps(metadata, ensure_ascii=False).encode()
    )
    codes_offset, codes_bytes = _add_member(tar, f"{utterance.id}.codes.npy", to_npy(codes))
    return UtteranceEntry(
        id=utterance.id,
        frames=codes.shape[0],
        text=utterance.text,
        language=utterance.language,
        speaker=utterance.speaker,
        split=utterance.split,
        json_offset=json_offset,
        json_bytes=json_bytes,
        codes_offset=codes_offset,
        codes_bytes=codes_bytes,
        extra=utterance.extra,
    )


def _with_extra(record: ShardRecord, coded: Sequence[CodedUtterance]) -> ShardRecord:
    """The record of a shard made from `coded`, with the `extra` that an index of version 1 left out."""
    entries = zip(record.utterances, coded, strict=True)
    return dataclasses.replace(
        record, utterances=tuple(dataclasses.replace(entry, extra=item.utterance.extra) for entry, item in entries)
    )


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> tuple[int, int]:
    """Append one file; returns where its content starts in the tar and how long it is."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mtime = 0
    info.mode = 0o644
    start = tar.offset + len(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
    tar.addfile(info, io.BytesIO(content))
    return start, len(content)


def _load_codes(path: Path) -> CodeArray:
    try:
        codes: CodeArray = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; run data_prep/02_encode_codes.py again") from error
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: not a readable .npy file ({error}); delete it and encode again") from error
    return codes


def _check_ids(coded: Sequence[CodedUtterance]) -> None:
    seen: set[str] = set()
    for item in coded:
        check_id(item.utterance.id, "shards")
        if item.utterance.id in seen:
            raise DataError(
                f"duplicate id {item.utterance.id!r}: two utterances of one dataset would share a member name"
            )
        seen.add(item.utterance.id)


def _source_digest(coded: Sequence[CodedUtterance], tokenizer: TokenizerCard) -> str:
    """What a shard is made from: tokenizer, rows and audio hashes. Codes follow from these, so they are not read."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(tokenizer), sort_keys=True).encode())
    for item in coded:
        row = dataclasses.asdict(item.utterance) | {"audio": "", "num_samples": item.num_samples}
        if not isinstance(item.codes, Path):
            row["codes_sha256"] = hashlib.sha256(to_npy(item.codes)).hexdigest()
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _finished_shards(folder: Path, tokenizer: TokenizerCard) -> dict[str, ShardRecord]:
    """Complete shards of earlier runs, from the index or from the parts of an unfinished one."""
    records: list[ShardRecord] = []
    if (folder / INDEX_NAME).is_file():
        index = read_index(folder)
        if index.tokenizer != tokenizer:
            raise DataError(
                f"{folder} holds shards of tokenizer {index.tokenizer.describe()}, these codes are of "
                f"{tokenizer.describe()}; choose another output folder or delete the old one"
            )
        records += index.shards
    for part in sorted(folder.glob("*" + _PART_SUFFIX)):
        where = str(part)
        try:
            row = parse_json_object(decode_utf8(part.read_bytes(), where), where)
            # Parts carry no version; one of version 1 is known by what it lacks.
            version = 1 if all("extra" not in utterance for utterance in row["utterances"]) else FORMAT_VERSION
            records.append(parse_shard_record(row, version))
        except (KeyError, TypeError) as error:
            raise DataError(f"{part}: damaged ({error}); delete it and start again") from error
    return {r.file: r for r in records if (folder / r.file).is_file() and (folder / r.file).stat().st_size == r.bytes}


def _forget_index(folder: Path, current: dict[str, ShardRecord], known: dict[str, ShardRecord]) -> None:
    """Make a finished folder an unfinished one before the first change, so that no index ever tells of lost tars."""
    for name, record in current.items():
        part = folder / (name + _PART_SUFFIX)
        if not part.is_file():
            write_bytes(part, to_json(record))
    (folder / INDEX_NAME).unlink(missing_ok=True)
    for name in known.keys() - current.keys():
        (folder / (name + _PART_SUFFIX)).unlink(missing_ok=True)
        (folder / name).unlink(missing_ok=True)
