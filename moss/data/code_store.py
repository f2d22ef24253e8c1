"""Where encoded clips wait before they go into shards: one `.npy` per recording, named by the hash of its audio.

A changed recording gets a new name, so codes are never stale; two tokenizers never share a folder, since its name
holds their fingerprint. A clip that is brought to the level of references has a name of its own (`store_key`). A clip
counts as done when its array is in place and `encoded.jsonl` tells its length.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moss.data.files import append_jsonl, decode_utf8, parse_json_object, read_journal, remove_leftovers, write_bytes
from moss.data.manifest import Utterance
from moss.data.shard_index import TokenizerCard
from moss.data.shard_writer import check_codes, to_npy
from moss.errors import DataError

CARD_NAME = "tokenizer.json"
JOURNAL_NAME = "encoded.jsonl"


def store_key(utterance: Utterance) -> str:
    """The name of a clip's codes: the hash of its audio and, where its level is changed first, a mark of that."""
    return f"{utterance.sha256}-levelled" if utterance.sha256 and utterance.is_levelled else utterance.sha256


class CodeStore:
    """The codes that one tokenizer made.

    Args:
        folder: Made if missing.
        card: Which tokenizer; None reads it from an existing folder.

    Raises:
        DataError: The folder belongs to another tokenizer, or is no code folder.
    """

    def __init__(self, folder: Path, card: TokenizerCard | None = None) -> None:
        self.folder = folder
        found = _read_card(folder)
        if card is None and found is None:
            raise DataError(f"{folder} holds no {CARD_NAME}; name a folder written by data_prep/02_encode_codes.py")
        if card is not None and found is not None and card != found:
            raise DataError(
                f"{folder} holds codes of tokenizer {found.describe()}, not of {card.describe()}; choose another folder"
            )
        self.card: TokenizerCard = card if card is not None else found  # type: ignore[assignment]
        if found is None:
            write_bytes(folder / CARD_NAME, json.dumps(self.card.row(), indent=2).encode())
        self._num_samples: dict[str, int] = {}
        for row in read_journal(folder / JOURNAL_NAME):
            if isinstance(row.get("sha256"), str) and isinstance(row.get("num_samples"), int):
                self._num_samples[row["sha256"]] = row["num_samples"]

    def path(self, key: str) -> Path:
        """Where the codes of a clip, named by its `store_key`, lie, or would."""
        return self.folder / key[:2] / f"{key}.npy"

    def num_samples(self, key: str) -> int | None:
        """Samples of the recording at the tokenizer's rate, or None when it is not done."""
        return self._num_samples.get(key)

    def is_done(self, key: str) -> bool:
        """Whether the codes are there, complete, of the right type and shape; reads the header only."""
        num_samples = self._num_samples.get(key)
        if num_samples is None:
            return False
        try:
            codes = np.load(self.path(key), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return False
        expected = (self.card.spec.num_frames(num_samples), self.card.num_codebooks)
        return bool(codes.dtype == np.uint16 and codes.shape == expected)

    def put(self, key: str, codes: npt.NDArray[np.integer[Any]], num_samples: int) -> None:
        """Store the codes of one recording, shape (frames, codebooks).

        Raises:
            DataError: Wrong shape, type or range; or the disk is full.
        """
        path = self.path(key)
        check_codes(codes, num_samples, self.card, str(path))
        write_bytes(path, to_npy(codes))
        append_jsonl(self.folder / JOURNAL_NAME, {"sha256": key, "num_samples": num_samples})
        self._num_samples[key] = num_samples

    def remove_leftovers(self) -> int:
        """Delete what killed runs left half written."""
        return remove_leftovers(self.folder, recursive=True)


def store_folder(root: Path, card: TokenizerCard) -> Path:
    """The folder of a tokenizer's codes below a data root."""
    return root / "codes" / f"{card.name}-{card.fingerprint}-{card.num_codebooks}"


def find_store(root: Path, folders: Sequence[Path] = ()) -> CodeStore:
    """The code folder to write shards from: the one named, or the only one below `root`.

    Raises:
        DataError: There is none, or several, named or found (all are listed with their tokenizers).
    """
    found = list(folders) or sorted(card.parent for card in (root / "codes").glob(f"*/{CARD_NAME}"))
    if not found:
        raise DataError(f"no codes below {root / 'codes'}; run data_prep/02_encode_codes.py --root {root} first")
    stores = [CodeStore(folder) for folder in found]
    if len(stores) > 1:
        listed = ", ".join(f"{store.folder} ({store.card.describe()})" for store in stores)
        raise DataError(
            f"{len(stores)} code folders, shards take one, since codes of two tokenizers must not be mixed: {listed}; "
            "choose one with --codes"
        )
    return stores[0]


def _read_card(folder: Path) -> TokenizerCard | None:
    path = folder / CARD_NAME
    if not path.is_file():
        return None
    row = parse_json_object(decode_utf8(path.read_bytes(), str(path)), str(path))
    try:
        return TokenizerCard(**row)
    except TypeError as error:
        raise DataError(f"{path}: damaged ({error}); delete the folder and encode again") from error
