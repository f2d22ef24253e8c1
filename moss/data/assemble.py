"""Join a manifest with the codes of one tokenizer into what the shard writer takes."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from moss.data.code_store import CodeStore
from moss.data.files import read_jsonl
from moss.data.manifest import Utterance
from moss.data.quarantine import FILE_NAME as QUARANTINE
from moss.data.shard_writer import CodedUtterance
from moss.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Assembled:
    """Utterances with codes, and how many have none for a known reason."""

    coded: list[CodedUtterance]
    quarantined: int
    without_recording: int


def assemble(utterances: Sequence[Utterance], store: CodeStore) -> Assembled:
    """Find the codes of every utterance; the ones that encoding put aside or that have no recording are left out.

    Raises:
        DataError: Utterances without codes and without a reason: encoding is not finished.
    """
    quarantine = store.folder / QUARANTINE
    put_aside = {row["id"] for row in read_jsonl(quarantine)} if quarantine.is_file() else set()
    coded: list[CodedUtterance] = []
    missing: list[str] = []
    quarantined = without_recording = 0
    for utterance in utterances:
        num_samples = store.num_samples(utterance.sha256)
        if not (utterance.audio and utterance.sha256):
            without_recording += 1
        elif num_samples is not None and store.is_done(utterance.sha256):
            coded.append(CodedUtterance(utterance, num_samples, store.path(utterance.sha256)))
        elif utterance.id in put_aside:
            quarantined += 1
        else:
            missing.append(utterance.id)
    if missing:
        raise DataError(
            f"{len(missing)} of {len(utterances)} utterances have no codes in {store.folder}, first {missing[0]}; run "
            "data_prep/02_encode_codes.py to the end first"
        )
    return Assembled(coded, quarantined, without_recording)
