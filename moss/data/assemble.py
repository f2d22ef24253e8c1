"""Join a manifest with the codes of one tokenizer into what the shard writer takes."""

from collections.abc import Sequence
from dataclasses import dataclass

from moss.data.code_store import CodeStore, store_key
from moss.data.files import read_jsonl
from moss.data.manifest import Utterance
from moss.data.quarantine import FILE_NAME as QUARANTINE
from moss.data.shard_writer import CodedUtterance
from moss.errors import DataError


@dataclass(frozen=True, slots=True)
class Assembled:
    """Utterances with codes, and how many have none for a known reason."""

    coded: list[CodedUtterance]
    quarantined: int
    """Put aside while encoding, or their reference has no codes."""
    without_recording: int


def assemble(utterances: Sequence[Utterance], store: CodeStore) -> Assembled:
    """Find the codes of every utterance.

    The ones that encoding put aside or that have no recording are left out, and with a clip those that refer to it.

    Raises:
        DataError: Utterances without codes and without a reason: encoding is not finished; or a reference that is not
            in the manifest.
    """
    quarantine = store.folder / QUARANTINE
    put_aside = {row["id"] for row in read_jsonl(quarantine)} if quarantine.is_file() else set()
    known = {utterance.id for utterance in utterances}
    coded: list[CodedUtterance] = []
    missing: list[str] = []
    num_lost = without_recording = 0
    for utterance in utterances:
        key = store_key(utterance)
        num_samples = store.num_samples(key)
        if not (utterance.audio and utterance.sha256):
            without_recording += 1
        elif num_samples is not None and store.is_done(key):
            coded.append(CodedUtterance(utterance, num_samples, store.path(key)))
        elif utterance.id in put_aside:
            num_lost += 1
        else:
            missing.append(utterance.id)
    if missing:
        raise DataError(
            f"{len(missing)} of {len(utterances)} utterances have no codes in {store.folder}, first {missing[0]}; run "
            "data_prep/02_encode_codes.py to the end first"
        )
    for item in coded:
        for name in _references(item.utterance) - known:
            raise DataError(
                f"utterance {item.utterance.id} refers to {name!r}, which is not in the manifest; make it again with "
                "data_prep/01_manifest.py"
            )
    have_codes = {item.utterance.id for item in coded}
    kept = [item for item in coded if _references(item.utterance) <= have_codes]
    return Assembled(kept, num_lost + len(coded) - len(kept), without_recording)


def _references(utterance: Utterance) -> set[str]:
    return {name for name in utterance.extra.get("reference_ids") or [] if name is not None}
