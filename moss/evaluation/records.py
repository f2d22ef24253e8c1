"""One record per (system, utterance, metric): the file formats, and the journal that lets a run continue.

`scores.jsonl` grows by one line per record while a run works. A later run takes over every successful record
whose inputs are unchanged: the key of a record is a hash of the clip's bytes, the texts, the backend's revision and
the protocol. When a run is complete both files are rewritten in the order of its items, so that two runs over the
same inputs give the same content whatever happened in between.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moss.config.evaluation import Metric
from moss.data.files import append_jsonl, atomic_write, read_journal, write_jsonl
from moss.evaluation.metrics.wer import WordErrors

INVALID_REFERENCE = "invalid_ref"

Identity = tuple[str, str, Metric]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A score, or the reason why there is none. `value` and `error` are never both set, nor both missing."""

    system: str
    group: str
    utterance: str
    metric: Metric
    value: float | None
    error: str | None
    backend: str
    """Revision of what computed it."""
    protocol: str
    key: str
    """Hash of everything the value depends on."""
    extra: dict[str, Any] = field(default_factory=dict)
    """WER: texts as given and normalised, and S/D/I/H counts. SIM: what the prompt clip was."""

    @property
    def identity(self) -> Identity:
        """What the record is about."""
        return self.system, self.utterance, self.metric

    @property
    def is_invalid(self) -> bool:
        """Whether the reference text is empty after normalisation: not the system's fault, and excluded."""
        return self.error is not None and self.error.startswith(INVALID_REFERENCE)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"metric": self.metric.value}


def record_key(inputs: Mapping[str, str | float | None]) -> str:
    """Hash of what a score depends on; equal inputs give equal keys."""
    plain = json.dumps(dict(inputs), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(plain.encode()).hexdigest()[:32]


def word_error_fields(text: str, hypothesis: str, errors: WordErrors) -> dict[str, Any]:
    """The `extra` of a WER record."""
    return {
        "text": text,
        "hypothesis": hypothesis,
        "text_norm": errors.reference_norm,
        "hypothesis_norm": errors.hypothesis_norm,
        "hits": errors.hits,
        "substitutions": errors.substitutions,
        "deletions": errors.deletions,
        "insertions": errors.insertions,
    }


class Journal:
    """The records of one output folder."""

    def __init__(self, folder: Path) -> None:
        self.jsonl = folder / "scores.jsonl"
        self.parquet = folder / "scores.parquet"
        self._known: dict[str, Record] = {}
        for row in read_journal(self.jsonl):
            record = _record(row)
            if record is not None:
                self._known[_known_key(record)] = record

    def find(self, identity: Identity, key: str) -> Record | None:
        """An earlier successful record of the same thing with the same inputs. Failures are tried again."""
        record = self._known.get(_known_key_of(identity, key))
        return record if record is not None and record.error is None else None

    def append(self, record: Record) -> None:
        """Keep a record; a kill after this loses nothing."""
        # Waiting for the disk at each of thousands of lines costs more than the few scores a power cut could take.
        append_jsonl(self.jsonl, record.as_dict(), durable=False)
        self._known[_known_key(record)] = record

    def finish(self, records: Sequence[Record]) -> None:
        """Write both files complete and in order.

        Raises:
            DataError: the disk is full; the journal stays as it was.
        """
        write_parquet(self.parquet, records)
        write_jsonl(self.jsonl, (record.as_dict() for record in records))


def write_parquet(path: Path, records: Iterable[Record]) -> None:
    """Write records as a table; the counts of WER are columns of their own, the rest of `extra` is JSON."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = ("text", "text_norm", "hypothesis", "hypothesis_norm")
    counts = ("hits", "substitutions", "deletions", "insertions")
    rows = []
    for record in records:
        row = record.as_dict()
        extra = row.pop("extra")
        row["status"] = "ok" if record.error is None else INVALID_REFERENCE if record.is_invalid else "failed"
        row |= {name: extra.pop(name, None) for name in (*texts, *counts)}
        row["extra"] = json.dumps(extra, sort_keys=True, ensure_ascii=False)
        rows.append(row)
    names = ("system", "group", "utterance", "metric", "status", "error", *texts, "backend", "protocol", "key", "extra")
    schema = pa.schema(
        [(name, pa.string()) for name in names] + [("value", pa.float64())] + [(name, pa.int64()) for name in counts]
    )
    with atomic_write(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)


def _record(row: Mapping[str, Any]) -> Record | None:
    """A line of the journal, or None when another version of the program wrote it: it is then scored again."""
    try:
        return Record(**{**row, "metric": Metric(row["metric"])})
    except (KeyError, TypeError, ValueError):
        return None


def _known_key(record: Record) -> str:
    return _known_key_of(record.identity, record.key)


def _known_key_of(identity: Identity, key: str) -> str:
    system, utterance, metric = identity
    return "\0".join((system, utterance, metric.value, key))
