"""What could not be used, and why: `quarantine.jsonl`, and the stop above a fraction of bad recordings."""

import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path

from moss.data.files import write_jsonl
from moss.errors import DataError

logger = logging.getLogger(__name__)

FILE_NAME = "quarantine.jsonl"


@dataclass(frozen=True, slots=True)
class Rejected:
    """One recording that was put aside."""

    id: str
    path: str
    stage: str
    reason: str


@dataclass(slots=True)
class Quarantine:
    """Collects rejected recordings of one stage; the job goes on until `close`."""

    path: Path
    stage: str
    rejected: list[Rejected] = field(default_factory=list)

    def add(self, utterance_id: str, path: Path | str, reason: str) -> None:
        """Put one recording aside."""
        logger.warning("%s put aside: %s", utterance_id, reason)
        self.rejected.append(Rejected(utterance_id, str(path), self.stage, reason))

    def close(self, total: int, max_bad_frac: float) -> None:
        """Write the file, then stop if too much was put aside.

        Args:
            total: Recordings looked at, good and bad.
            max_bad_frac: Largest fraction of them that may be bad, 0 to 1.

        Raises:
            DataError: More than `max_bad_frac` are bad; the file has been written.
        """
        write_jsonl(self.path, (dataclasses.asdict(rejected) for rejected in self.rejected))
        bad = len(self.rejected)
        if bad > max_bad_frac * total:
            first = self.rejected[0]
            raise DataError(
                f"{bad} of {total} recordings ({bad / total:.1%}) cannot be used, more than --max-bad-frac "
                f"{max_bad_frac:g}; first: {first.id}: {first.reason}; all are listed in {self.path}; mend them "
                "or raise --max-bad-frac"
            )
