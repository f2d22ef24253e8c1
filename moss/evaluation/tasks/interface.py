"""What a benchmark offers to the runner."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from moss.config.evaluation import BootstrapConfig, Metric
from moss.evaluation.items import Item
from moss.evaluation.records import Record
from moss.evaluation.report_charts import ChartGroup
from moss.evaluation.summary import Summary, SummaryRow


class Task(Protocol):
    """A benchmark over one set of clips; built before anything is scored, so that wrong input fails at once."""

    name: str
    protocol: str
    """Name of the rules that the numbers follow; numbers under different names are not comparable."""
    metrics: tuple[Metric, ...]
    items: list[Item]
    """Every clip that should exist."""
    facts: dict[str, str]
    """What else identifies the run, for the provenance."""

    @property
    def ranked_system(self) -> str:
        """The system whose scores order the utterances of the report."""
        ...

    @property
    def shown_systems(self) -> Sequence[str]:
        """Systems with players in the report."""
        ...

    def rows(self, records: Sequence[Record], bootstrap: BootstrapConfig) -> list[SummaryRow]:
        """The headline table."""
        ...

    def group_rows(self, records: Sequence[Record], bootstrap: BootstrapConfig) -> list[SummaryRow]:
        """The same by group of texts."""
        ...

    def notes(self) -> list[str]:
        """What a reader must know of this benchmark."""
        ...

    def charts(self, rows: Sequence[SummaryRow], labels: dict[Metric, str]) -> list[ChartGroup]:
        """Charts of the report; `labels` are the headings of the metrics."""
        ...

    def write_files(self, folder: Path, summary: Summary) -> None:
        """Files beside those that every benchmark has."""
        ...
