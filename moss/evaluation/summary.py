"""The result of a run: rows of scores with everything needed to believe them, and its file format."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moss.config.evaluation import BootstrapConfig, Metric, MissingPolicy
from moss.data.files import atomic_write, decode_utf8, parse_json_object
from moss.errors import EvaluationError
from moss.evaluation.aggregate import Score, score_records
from moss.evaluation.protocol import METRICS
from moss.evaluation.records import Record

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRow:
    """One system, over all its utterances or one group of them."""

    label: str
    system: str
    group: str
    """Empty: all groups together."""
    scores: dict[Metric, Score]
    codebooks: int | None = None
    """Codebook count of a tokenizer row."""
    bits_per_s: float | None = None
    """Nominal bit rate of a tokenizer or codec row; None where nothing is quantised."""
    family: str = ""
    """What a row is one setting of: rows of one family make one curve."""

    @property
    def title(self) -> str:
        """The label with the bit rate, where there is one."""
        return self.label if self.bits_per_s is None else f"{self.label} ({self.bits_per_s:.0f} bit/s)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Content of summary.json."""

    benchmark: str
    protocol: str
    missing: MissingPolicy
    rows: list[SummaryRow]
    """The headline table."""
    group_rows: list[SummaryRow] = field(default_factory=list)
    """The same by group, where a row of the headline joins several."""
    labels: dict[Metric, str]
    """Column headings; a similarity names its encoder."""
    backends: dict[Metric, str]
    notes: list[str]
    """What a reader must know to read the numbers."""
    provenance: dict[str, Any]
    format_version: int = FORMAT_VERSION

    @property
    def num_failed(self) -> int:
        """Clip scores that are missing, over the headline rows."""
        return sum(score.n_expected - score.n_scored for row in self.rows for score in row.scores.values())

    @property
    def num_invalid(self) -> int:
        """Utterances whose reference text is empty after normalisation, over the headline rows."""
        return sum(score.n_invalid for row in self.rows for score in row.scores.values())


def make_row(
    label: str,
    records: Sequence[Record],
    metrics: Sequence[Metric],
    bootstrap: BootstrapConfig,
    *,
    system: str,
    group: str = "",
    codebooks: int | None = None,
    bits_per_s: float | None = None,
    family: str = "",
) -> SummaryRow:
    """Aggregate the records of one system (and group) into a row; a metric without records has no column entry."""
    mine = [record for record in records if record.system == system and (not group or record.group == group)]
    scores = {}
    for metric in metrics:
        of_metric = [record for record in mine if record.metric is metric]
        if of_metric:
            scores[metric] = score_records(metric, of_metric, bootstrap)
    return SummaryRow(
        label=label,
        system=system,
        group=group,
        scores=scores,
        codebooks=codebooks,
        bits_per_s=bits_per_s,
        family=family,
    )


def write_summary(path: Path, summary: Summary) -> None:
    """Write summary.json atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(asdict(summary), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_summary(path: Path) -> Summary:
    """Read summary.json.

    Raises:
        EvaluationError: missing, or of another format version.
        DataError: not JSON.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}; run evaluate.py first") from error
    plain = parse_json_object(decode_utf8(content, str(path)), str(path))
    version = plain.get("format_version")
    if version != FORMAT_VERSION:
        raise EvaluationError(f"{path}: format version {version!r}, expected {FORMAT_VERSION}; evaluate again")
    plain["missing"] = MissingPolicy(plain["missing"])
    for name in ("labels", "backends"):
        plain[name] = {Metric(metric): text for metric, text in plain[name].items()}
    for name in ("rows", "group_rows"):
        plain[name] = [_row(row) for row in plain[name]]
    return Summary(**plain)


def show_value(metric: Metric, value: float | None) -> str:
    """A value as it is printed: percent with one decimal for rates, else three decimals."""
    if value is None:
        return "n/a"
    if METRICS[metric].percent:
        return f"{100 * value:.1f} %"
    return f"{value:.3f}"


def show_interval(metric: Metric, score: Score) -> str:
    """The interval of a score, in the unit of its value."""
    if score.low is None or score.high is None:
        return ""
    scale, digits = (100, 1) if METRICS[metric].percent else (1, 3)
    return f"[{scale * score.low:.{digits}f}, {scale * score.high:.{digits}f}]"


def _row(plain: dict[str, Any]) -> SummaryRow:
    scores = {Metric(metric): Score(**score) for metric, score in plain.pop("scores").items()}
    return SummaryRow(scores=scores, **plain)
