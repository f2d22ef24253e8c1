"""Safetensors files read and written one tensor at a time, so that a model never has to fit into memory twice.

Headers are checked against the file before any weight is used: a truncated download, a pickle under another name or an
index whose shards lack something is an error that names the file. Nothing here executes anything.
Source: the safetensors format, https://github.com/huggingface/safetensors (8 bytes of length, JSON, data).
"""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from moss.errors import CheckpointError

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_CHUNK_BYTES = 16 * 2**20
# The format's own limit; a larger number is the beginning of some other kind of file.
_MAX_HEADER_BYTES = 100_000_000

Advance = Callable[[int], object]
"""Called with the number of bytes that were just written."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: `num_bytes` at `offset` of `path`; `dtype` is spelt as in the file (F32, BF16, ...)."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int

    def read(self) -> Tensor:
        """The tensor, in its own dtype.

        Raises:
            CheckpointError: The file became shorter since its header was read.
        """
        content = torch.empty(self.num_bytes, dtype=torch.uint8)
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            if file.readinto(content.numpy().data) != self.num_bytes:
                raise _damaged(self.path, f"{self.name} ends before its {self.num_bytes} bytes")
        return content.view(_DTYPES[self.dtype]).view(self.shape)

    def chunks(self) -> Iterator[bytes]:
        """The bytes, a few MiB at a time.

        Raises:
            CheckpointError: The file became shorter since its header was read.
        """
        left = self.num_bytes
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            while left:
                chunk = file.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    raise _damaged(self.path, f"{self.name} ends {left} bytes early")
                left -= len(chunk)
                yield chunk

    def equals(self, other: "StoredTensor") -> bool:
        """Whether dtype, shape and every byte are the same."""
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        return all(a == b for a, b in zip(self.chunks(), other.chunks(), strict=True))


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file: `header` as it is written there, padding included, and the tensors in the order of their bytes."""

    path: Path
    header: str
    tensors: tuple[StoredTensor, ...]


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """All tensors of a folder: one file, or shards with an index (`index` is its text)."""

    source: Path
    files: tuple[StoredFile, ...]
    index: str | None

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """By name."""
        return {tensor.name: tensor for file in self.files for tensor in file.tensors}

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(file.path.stat().st_size for file in self.files)


Source = Tensor | StoredTensor
"""What a file can be written from."""


def open_weights(folder: Path) -> StoredWeights:
    """Read and check the headers of a folder's weights.

    Raises:
        CheckpointError: No weights, pickles only, a missing or truncated shard, or an index that does not fit.
    """
    single, index = folder / WEIGHTS_FILE, folder / INDEX_FILE
    if single.is_file() and index.is_file():
        raise CheckpointError(f"{folder}: has both {WEIGHTS_FILE} and {INDEX_FILE}; delete the one that is out of date")
    if index.is_file():
        return _open_shards(index)
    if single.is_file():
        return StoredWeights(single, (read_header(single),), None)
    raise CheckpointError(_nothing_there(folder))


def read_header(path: Path) -> StoredFile:
    """Read and check one file's header.

    Raises:
        CheckpointError: Not safetensors, or shorter or longer than its header says.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            first = file.read(8)
            if first[:4] == b"PK\x03\x04" or (first[:1] == b"\x80" and first[1:2] in b"\x02\x03\x04\x05"):
                raise CheckpointError(
                    f"{path}: a pickle, not a safetensors file; a pickle can run programs and is never opened here: "
                    "ask its author for safetensors, or convert it where you trust it"
                )
            length = int.from_bytes(first, "little")
            if len(first) < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise _damaged(path, f"{size} bytes do not hold its header")
            header = file.read(length).decode("utf-8")
        content = json.loads(header)
        return StoredFile(path, header, _checked_entries(path, content, 8 + length, size))
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"the header is not as it should be: {error}") from error


def header_of(entries: Sequence[tuple[str, Source]], metadata: Mapping[str, str]) -> str:
    """The header of a file that holds these tensors in this order, padded to 8 bytes."""
    content: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, source in entries:
        dtype, shape, num_bytes = _geometry(source)
        content[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + num_bytes]}
        offset += num_bytes
    header = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    return header + " " * (-len(header.encode()) % 8)


def write_file(path: Path, header: str, sources: Sequence[Source], advance: Advance | None = None) -> None:
    """Write one file tensor by tensor and flush it to the disk.

    Args:
        path: Overwritten; making it appear at once is the caller's business.
        header: From `header_of`, or another file's with the same tensors.
        sources: In the order of the header's offsets.
        advance: Told the bytes written, for a progress bar.
    """
    with open(path, "wb") as file:
        content = header.encode("utf-8")
        file.write(len(content).to_bytes(8, "little") + content)
        for source in sources:
            _write_tensor(file, source, advance)
        file.flush()
        os.fsync(file.fileno())


def write_weights(
    folder: Path,
    sources: Mapping[str, Source],
    *,
    max_shard_bytes: int | None = None,
    metadata: Mapping[str, str] | None = None,
    advance: Advance | None = None,
) -> None:
    """Write `model.safetensors`, or shards and their index where it would be larger than `max_shard_bytes`.

    Args:
        folder: Exists.
        sources: Written in this order.
        max_shard_bytes: A single tensor may exceed it.
        metadata: The files' `__metadata__`; {"format": "pt"} if None.
        advance: Told the bytes written.
    """
    words = {"format": "pt"} if metadata is None else metadata
    shards: list[list[tuple[str, Source]]] = [[]]
    filled = total = 0
    for name, source in sources.items():
        size = _geometry(source)[2]
        if max_shard_bytes is not None and shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append((name, source))
        filled, total = filled + size, total + size
    names = [WEIGHTS_FILE]
    if len(shards) > 1:
        names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
        (folder / INDEX_FILE).write_text(index_text(dict(zip(names, shards, strict=True)), total), encoding="utf-8")
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, header_of(shard, words), [source for _, source in shard], advance)


def index_text(shards: Mapping[str, Sequence[tuple[str, Source]]], num_bytes: int) -> str:
    """The text of `model.safetensors.index.json` for tensors by file name."""
    weight_map = {name: file for file, shard in shards.items() for name, _ in shard}
    content = {"metadata": {"total_size": num_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(content, indent=2) + "\n"


def dtype_problems(tensors: Mapping[str, StoredTensor]) -> list[str]:
    """Tensors whose dtype is not that of the others, or is none for weights; one line each."""
    if not tensors:
        return []
    common = Counter(tensor.dtype for tensor in tensors.values()).most_common(1)[0][0]
    if not (_DTYPES[common].is_floating_point and _DTYPES[common].itemsize >= 2):
        return [f"the tensors are {common}; expected one of F32, F16, BF16, F64"]
    return [
        f"{name} is {tensor.dtype}, most others are {common}"
        for name, tensor in sorted(tensors.items())
        if tensor.dtype != common
    ]


def _open_shards(index: Path) -> StoredWeights:
    try:
        text = index.read_text(encoding="utf-8")
        weight_map = dict(json.loads(text)["weight_map"])
        wanted = {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index}: no readable weight_map ({error!r}); fetch the checkpoint again") from error
    names = sorted(set(wanted.values()))
    outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if outside:
        raise CheckpointError(f"{index}: shards must be .safetensors files beside the index, got {outside[0]!r}")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index}: names {len(names)} shards, but these are not in the folder: {', '.join(missing)}; "
            "fetch them again"
        )
    files = tuple(read_header(index.parent / name) for name in names)
    problems = []
    held: dict[str, str] = {}
    for file in files:
        for tensor in file.tensors:
            if tensor.name in held:
                problems.append(f"{tensor.name} is in {held[tensor.name]} and in {file.path.name}")
            held[tensor.name] = file.path.name
            if tensor.name not in wanted:
                problems.append(f"{tensor.name} is in {file.path.name}, but not in the index")
    for name, shard in sorted(wanted.items()):
        if held.get(name) != shard:
            problems.append(f"{name} should be in {shard}, but is {'in ' + held[name] if name in held else 'missing'}")
    if problems:
        raise CheckpointError(
            f"{index}: the index does not fit its shards; fetch the checkpoint again:\n  " + "\n  ".join(problems)
        )
    return StoredWeights(index, files, text)


def _checked_entries(path: Path, content: dict[str, Any], start: int, size: int) -> tuple[StoredTensor, ...]:
    entries = [(name, entry) for name, entry in content.items() if name != "__metadata__"]
    tensors: list[StoredTensor] = []
    for name, entry in sorted(entries, key=lambda item: (item[1]["data_offsets"][0], item[1]["data_offsets"][1])):
        dtype, shape = str(entry["dtype"]), tuple(int(length) for length in entry["shape"])
        begin, end = (int(bound) for bound in entry["data_offsets"])
        if dtype not in _DTYPES:
            raise _damaged(path, f"{name} has the dtype {dtype}, expected one of {', '.join(_DTYPES)}")
        expected = tensors[-1].offset + tensors[-1].num_bytes - start if tensors else 0
        if begin != expected or end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
            raise _damaged(path, f"{name} of {dtype} {list(shape)} cannot lie at bytes {begin} to {end}")
        if start + end > size:
            raise _damaged(path, f"truncated: {name} ends at byte {start + end}, the file at {size}")
        tensors.append(StoredTensor(name, path, dtype, shape, start + begin, end - begin))
    end_of_data = tensors[-1].offset + tensors[-1].num_bytes if tensors else start
    if end_of_data != size:
        raise _damaged(path, f"{size - end_of_data} bytes follow the last tensor")
    return tuple(tensors)


def _nothing_there(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES) and not name.startswith("trainer")]
    shards = [name for name in names if name.endswith(".safetensors")]
    if shards:
        return f"{folder}: has {shards[0]}, but no {INDEX_FILE} that says which tensors are where; fetch the index too"
    if pickles:
        return (
            f"{folder}: no {WEIGHTS_FILE}, only {', '.join(pickles)}: pickles can run programs and are never opened "
            "here; ask for safetensors, or convert them where you trust them"
        )
    return f"{folder}: no {WEIGHTS_FILE}; the checkpoint is incomplete"


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path}: not a readable safetensors file ({reason}); fetch or export it again")


def _geometry(source: Source) -> tuple[str, tuple[int, ...], int]:
    if isinstance(source, StoredTensor):
        return source.dtype, source.shape, source.num_bytes
    return _NAMES[source.dtype], tuple(source.shape), source.numel() * source.element_size()


def _write_tensor(file: BinaryIO, source: Source, advance: Advance | None) -> None:
    if isinstance(source, StoredTensor):
        for chunk in source.chunks():
            file.write(chunk)
            if advance is not None:
                advance(len(chunk))
        return
    content = source.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    file.write(content.numpy().data)
    if advance is not None:
        advance(len(content))
