"""`metrics.csv`: every logged number of a run as `step,key,value`, exact and append-only.

The long format lets any key appear at any time, and a resumed run cut the file back to its checkpoint: what a killed
process logged after its last checkpoint is logged again, once.
"""

import csv
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

HEADER = ["step", "key", "value"]


class MetricsFile(Logger):
    """A Lightning logger that appends to one CSV file.

    Args:
        path: The file.
        start_step: Rows of this step and later are dropped before the first write.
    """

    def __init__(self, path: Path, start_step: int) -> None:
        super().__init__()
        self._path = path
        self._cut(start_step)

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """Lightning asks for one; a run has one file."""
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> Path:
        """The file itself."""
        return self._path

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml holds the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row per number; `repr` keeps every bit."""
        # Sorted: Lightning's order depends on what was logged first, which a resume changes.
        rows = [[step, key, repr(float(value))] for key, value in sorted(metrics.items()) if key != "epoch"]
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)

    @rank_zero_only
    def _cut(self, start_step: int) -> None:
        kept: list[list[str]] = []
        if self._path.exists():
            with self._path.open(newline="", encoding="utf-8") as file:
                for row in csv.reader(file):
                    # A kill in mid-write can leave a short last line.
                    if len(row) == len(HEADER) and row[0].isdigit() and int(row[0]) < start_step:
                        kept.append(row)
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([HEADER, *kept])
        temporary.replace(self._path)
