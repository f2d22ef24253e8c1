"""The summary as a table on the terminal."""

import sys
from typing import TextIO

from moss.config.evaluation import Metric
from moss.evaluation.aggregate import Score
from moss.evaluation.summary import Summary, show_interval, show_value

_NAME_COLUMNS, _METRIC_COLUMNS, _FEW_METRICS = 70, 18, 6


def print_summary(summary: Summary, stream: TextIO | None = None) -> None:
    """Write the headline table, its notes and what failed; wide enough for its columns when piped into a file."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    stream = stream or sys.stdout
    metrics = list(summary.labels)
    needed = max(160, _NAME_COLUMNS + _METRIC_COLUMNS * len(metrics))
    console = Console(file=stream, width=None if stream.isatty() else needed, highlight=False)
    # A terminal that is too narrow for the intervals gets the means; the files have both.
    compact = stream.isatty() and len(metrics) > _FEW_METRICS and console.width < needed
    title = f"{summary.benchmark} (protocol {summary.protocol})"
    table = Table(title=title, title_justify="left", show_lines=not compact)
    table.add_column("row")
    for metric in metrics:
        table.add_column(Text(summary.labels[metric]), justify="right")
    table.add_column("n scored / n expected", justify="right")
    for row in summary.rows:
        cells = [Text(_cell(metric, row.scores.get(metric), compact)) for metric in metrics]
        table.add_row(Text(row.title), *cells, Text(coverage(list(row.scores.values()))))
    console.print(table)
    for note in summary.notes:
        console.print(Text(f"- {note}"))


def coverage(scores: list[Score]) -> str:
    """Scored and expected clips, once where all metrics agree, else one per metric."""
    pairs = [f"{score.n_scored} / {score.n_expected}" for score in scores]
    return pairs[0] if len(set(pairs)) == 1 else ", ".join(pairs) if pairs else "n/a"


def _cell(metric: Metric, score: Score | None, compact: bool) -> str:
    if score is None:
        return "n/a"
    if compact:
        return show_value(metric, score.mean)
    return f"{show_value(metric, score.mean)}\n{show_interval(metric, score)}".strip()
