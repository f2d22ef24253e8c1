"""Random access to shards: the one reader of the package.

A `ShardDataset` opens the index only; an example is two `pread` calls at known offsets. It holds no file position, so
threads, forked workers and pickled copies may read at the same time.
"""

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moss.data.shard_index import ShardIndex, ShardRecord, TokenizerCard, UtteranceEntry, read_index
from moss.errors import DataError

_MAX_OPEN_FILES = 256


@dataclass(frozen=True, slots=True)
class Example:
    """One utterance as training sees it. `codes` is uint16 of shape (frames, codebooks), owned by the caller.

    `references` are the codes of the clips that `extra["reference_ids"]` names, None where it holds a null.
    """

    id: str
    text: str
    language: str
    speaker: str
    split: str
    codes: npt.NDArray[np.uint16]
    num_samples: int
    extra: dict[str, Any]
    references: list[npt.NDArray[np.uint16] | None] = field(default_factory=list)


class ShardDataset:
    """All utterances of one shard folder, by position.

    Args:
        folder: A folder with `index.json` and its tars.

    Raises:
        DataError: No index, another format version, or a tar that is missing or not as long as the index says.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.index: ShardIndex = read_index(self.folder)
        self.entries: list[UtteranceEntry] = []
        self._shards: list[ShardRecord] = []
        for shard in self.index.shards:
            _check_size(self.folder, shard)
            self.entries += shard.utterances
            self._shards += [shard] * len(shard.utterances)
        self._descriptors: dict[str, int] = {}
        self._extras: dict[int, dict[str, Any]] = {}

    @property
    def tokenizer(self) -> TokenizerCard:
        """Which tokenizer made the codes."""
        return self.index.tokenizer

    @property
    def fingerprint(self) -> str:
        """The dataset fingerprint."""
        return self.index.dataset_fingerprint

    def __len__(self) -> int:
        return len(self.entries)

    def example(self, position: int) -> Example:
        """Read one utterance with the clips it refers to, and check them against the index.

        Raises:
            DataError: The tar is cut short or its content is not what the index says, or a reference names no
                utterance of the folder; names `shard:id`.
            IndexError: No such position.
        """
        entry = self.entries[position]
        metadata = self._metadata(position)
        return Example(
            id=entry.id,
            text=entry.text,
            language=entry.language,
            speaker=entry.speaker,
            split=entry.split,
            codes=self.codes(position),
            num_samples=metadata["num_samples"],
            extra=metadata["extra"],
            references=[None if other is None else self.codes(other) for other in self.references(position)],
        )

    def codes(self, position: int) -> npt.NDArray[np.uint16]:
        """The codes of one utterance alone, uint16 (frames, codebooks).

        Raises:
            DataError: As `example`.
        """
        entry, where = self.entries[position], self._where(position)
        content = self._read(self._shards[position], entry.codes_offset, entry.codes_bytes, where)
        return parse_codes(content, entry.frames, self.tokenizer, where)

    def extra(self, position: int) -> dict[str, Any]:
        """What else is known of an utterance: from the index, or from its tar where the index is of version 1.

        Raises:
            DataError: As `example`.
        """
        known = self.entries[position].extra
        if known is not None:
            return known
        if position not in self._extras:
            self._extras[position] = self._metadata(position)["extra"]
        return self._extras[position]

    def references(self, position: int) -> list[int | None]:
        """Positions of the clips whose voices an utterance refers to, speaker after speaker; None where there is none.

        Raises:
            DataError: `reference_ids` is no list of ids and nulls, or names no utterance of this folder.
        """
        ids = self.extra(position).get("reference_ids") or []
        if not isinstance(ids, list) or not all(name is None or isinstance(name, str) for name in ids):
            raise DataError(f"{self._where(position)}: reference_ids is {ids!r}, expected a list of ids and nulls")
        for name in ids:
            if name is not None and name not in self._positions:
                raise DataError(
                    f"{self._where(position)}: reference {name!r} is no utterance of {self.folder}; write the shards "
                    "again from a manifest that holds it"
                )
        return [None if name is None else self._positions[name] for name in ids]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {entry.id: position for position, entry in enumerate(self.entries)}

    def _where(self, position: int) -> str:
        return f"{self.folder / self._shards[position].file}:{self.entries[position].id}"

    def _metadata(self, position: int) -> dict[str, Any]:
        entry, where = self.entries[position], self._where(position)
        content = self._read(self._shards[position], entry.json_offset, entry.json_bytes, where)
        return _parse_metadata(content, entry, where)

    def close(self) -> None:
        """Close the tars; a later read opens them again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_descriptors": {}}

    def __del__(self) -> None:
        if hasattr(self, "_descriptors"):
            self.close()

    def _read(self, shard: ShardRecord, offset: int, length: int, where: str) -> bytes:
        try:
            descriptor, cached = self._open(shard.file)
            try:
                content = os.pread(descriptor, length, offset)
            finally:
                if not cached:
                    os.close(descriptor)
        except OSError as error:
            raise DataError(f"{where}: cannot be read: {error.strerror}") from error
        if len(content) != length:
            raise DataError(
                f"{where}: truncated: bytes {offset}..{offset + length} wanted, {len(content)} there; restore the "
                "shard or delete it and run data_prep/03_write_shards.py again"
            )
        return content

    def _open(self, file: str) -> tuple[int, bool]:
        """A descriptor for a tar and whether it stays open; no lock, as `setdefault` keeps exactly one winner."""
        descriptor = self._descriptors.get(file)
        if descriptor is not None:
            return descriptor, True
        descriptor = os.open(self.folder / file, os.O_RDONLY | os.O_CLOEXEC)
        if len(self._descriptors) >= _MAX_OPEN_FILES:
            return descriptor, False
        winner = self._descriptors.setdefault(file, descriptor)
        if winner != descriptor:
            os.close(descriptor)
        return winner, True


def open_datasets(folders: Sequence[Path | str]) -> list[ShardDataset]:
    """Open several shard folders for one mixture.

    Raises:
        DataError: No folder given, or two folders whose codes come from different tokenizers (both are named).
    """
    if not folders:
        raise DataError("no shard folders given; name at least one folder written by data_prep/03_write_shards.py")
    datasets = [ShardDataset(folder) for folder in folders]
    first = datasets[0]
    for other in datasets[1:]:
        if other.tokenizer != first.tokenizer:
            raise DataError(
                f"shards of two tokenizers in one mixture: {first.folder} is {first.tokenizer.describe()}, "
                f"{other.folder} is {other.tokenizer.describe()}; encode both with the same tokenizer"
            )
    return datasets


def parse_codes(content: bytes, frames: int, tokenizer: TokenizerCard, where: str) -> npt.NDArray[np.uint16]:
    """Decode a `.npy` member and check type, shape (frames, codebooks) and range.

    Raises:
        DataError: Names `where`.
    """
    try:
        codes = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{where}: codes are not a .npy array ({error}); write the shard again") from error
    expected = (frames, tokenizer.num_codebooks)
    if codes.dtype != np.uint16 or codes.shape != expected:
        raise DataError(
            f"{where}: codes are {codes.dtype} {codes.shape}, expected uint16 {expected} (frames, codebooks)"
        )
    if codes.size and int(codes.max()) >= tokenizer.codebook_size:
        raise DataError(f"{where}: code {int(codes.max())} is outside 0..{tokenizer.codebook_size - 1}")
    return codes


def _parse_metadata(content: bytes, entry: UtteranceEntry, where: str) -> dict[str, Any]:
    try:
        metadata: dict[str, Any] = json.loads(content)
        found = (metadata["id"], metadata["text"], metadata["frames"])
        extra, num_samples = metadata["extra"], metadata["num_samples"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: the JSON member is damaged ({error!r}); write the shard again") from error
    expected = (entry.id, entry.text, entry.frames)
    if found != expected or not isinstance(extra, dict) or not isinstance(num_samples, int):
        raise DataError(f"{where}: the shard holds {found}, the index says {expected}; write the shards again")
    return metadata


def _check_size(folder: Path, shard: ShardRecord) -> None:
    path = folder / shard.file
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; restore it or run data_prep/03_write_shards.py again") from error
    if size != shard.bytes:
        state = "truncated" if size < shard.bytes else "longer than written"
        raise DataError(
            f"{path}: {state}: {size} bytes, the index says {shard.bytes}; restore it, or delete it and run "
            "data_prep/03_write_shards.py again"
        )
