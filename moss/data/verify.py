"""Read a shard folder completely and list everything that is not as the index says."""

import json
import os
import tarfile
from collections.abc import Collection
from pathlib import Path

from moss.data.files import sha256_file
from moss.data.progress import track
from moss.data.shard import parse_codes
from moss.data.shard_index import ShardIndex, ShardRecord, UtteranceEntry, dataset_fingerprint, read_index
from moss.errors import DataError

_MAX_SHOWN = 20


def verify_shards(folder: Path) -> tuple[ShardIndex, list[str]]:
    """Check hashes, offsets, members, code ranges, `frames == ceil(samples / hop)`, unique ids, references and totals.

    Returns:
        The index, and one line per problem, each starting with the shard or `shard:id`.

    Raises:
        DataError: There is no readable index.
    """
    index = read_index(folder)
    problems: list[str] = []
    seen: dict[str, str] = {}
    for shard in track(index.shards, "verifying shards", len(index.shards)):
        problems += _check_shard(folder, shard, index)
        for entry in shard.utterances:
            if entry.id in seen:
                problems.append(f"{shard.file}:{entry.id}: duplicate id, also in {seen[entry.id]}")
            seen[entry.id] = shard.file
    for shard in index.shards:
        problems += _dangling_references(shard, seen.keys())
    listed = {shard.file for shard in index.shards}
    for stray in sorted(path.name for path in folder.glob("*.tar") if path.name not in listed):
        problems.append(f"{stray}: not in the index; delete it")
    problems += _check_totals(index)
    return index, problems


def require_sound(folder: Path, problems: list[str]) -> None:
    """Stop when there are problems.

    Raises:
        DataError: One headline with what to do, then each problem on a line of its own (the first 20).
    """
    if problems:
        noun = "problem" if len(problems) == 1 else "problems"
        lines = [
            f"{len(problems)} {noun} in {folder}; restore the named shards, or delete them and run "
            "data_prep/03_write_shards.py again:"
        ]
        lines += [f"  {problem}" for problem in problems[:_MAX_SHOWN]]
        if len(problems) > _MAX_SHOWN:
            lines.append(f"  and {len(problems) - _MAX_SHOWN} more")
        raise DataError("\n".join(lines))


def _check_shard(folder: Path, shard: ShardRecord, index: ShardIndex) -> list[str]:
    path = folder / shard.file
    if not path.is_file():
        return [f"{shard.file}: missing"]
    size = path.stat().st_size
    if size < shard.bytes:
        return [f"{shard.file}: truncated: {size} bytes, the index says {shard.bytes}"]
    problems = []
    if sha256_file(path) != shard.sha256:
        problems.append(f"{shard.file}: sha256 differs from the index: the file was changed after it was written")
    members, broken = _members(path)
    problems += [f"{shard.file}: {broken}"] if broken else []
    expected = {name for entry in shard.utterances for name in (f"{entry.id}.json", f"{entry.id}.codes.npy")}
    for name in sorted(members.keys() - expected):
        problems.append(f"{shard.file}: member {name} is not in the index")
    with open(path, "rb") as file:
        for entry in shard.utterances:
            where = f"{shard.file}:{entry.id}"
            for name, offset, length in (
                (f"{entry.id}.json", entry.json_offset, entry.json_bytes),
                (f"{entry.id}.codes.npy", entry.codes_offset, entry.codes_bytes),
            ):
                if members.get(name) != (offset, length):
                    problems.append(
                        f"{where}: member {name} is at {members.get(name)}, the index says {(offset, length)}"
                    )
            problems += _check_entry(file.fileno(), entry, index, where)
    return problems


def _members(path: Path) -> tuple[dict[str, tuple[int, int]], str]:
    """Offset and length of every member of a tar, and what stopped the reading."""
    members: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(path, "r:", encoding="utf-8") as tar:
            for member in tar:
                members[member.name] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        return members, f"not a whole tar: {error}"
    return members, ""


def _check_entry(descriptor: int, entry: UtteranceEntry, index: ShardIndex, where: str) -> list[str]:
    try:
        parse_codes(os.pread(descriptor, entry.codes_bytes, entry.codes_offset), entry.frames, index.tokenizer, where)
    except DataError as error:
        return [str(error)]
    try:
        metadata = json.loads(os.pread(descriptor, entry.json_bytes, entry.json_offset))
    except ValueError as error:
        return [f"{where}: the JSON member is damaged ({error})"]
    if not isinstance(metadata, dict):
        return [f"{where}: the JSON member is not an object"]
    problems = []
    for name in ("id", "text", "language", "speaker", "split", "frames"):
        if metadata.get(name) != getattr(entry, name):
            problems.append(f"{where}: {name} is {metadata.get(name)!r}, the index says {getattr(entry, name)!r}")
    if entry.extra is not None and metadata.get("extra") != entry.extra:
        problems.append(f"{where}: extra is {metadata.get('extra')!r}, the index says {entry.extra!r}")
    num_samples = metadata.get("num_samples")
    if not isinstance(num_samples, int) or index.tokenizer.spec.num_frames(num_samples) != entry.frames:
        problems.append(
            f"{where}: {entry.frames} frames for {num_samples} samples, expected ceil(samples / "
            f"{index.tokenizer.samples_per_frame})"
        )
    return problems


def _dangling_references(shard: ShardRecord, known: Collection[str]) -> list[str]:
    return [
        f"{shard.file}:{entry.id}: reference {name!r} is no utterance of this folder"
        for entry in shard.utterances
        for name in (entry.extra or {}).get("reference_ids") or []
        if name is not None and name not in known
    ]


def _check_totals(index: ShardIndex) -> list[str]:
    entries = [entry for shard in index.shards for entry in shard.utterances]
    problems = []
    for name, found in (("utterances", len(entries)), ("frames", sum(entry.frames for entry in entries))):
        if getattr(index, name) != found:
            problems.append(f"index.json: {name} is {getattr(index, name)}, the shards hold {found}")
    fingerprint = dataset_fingerprint(index.tokenizer, entries)
    if index.dataset_fingerprint != fingerprint:
        problems.append(f"index.json: dataset_fingerprint {index.dataset_fingerprint}, the shards give {fingerprint}")
    return problems
