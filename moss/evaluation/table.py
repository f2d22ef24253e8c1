"""The summary as a table on the terminal."""

import sys
from typing import TextIO

from moss.config.evaluation import Metric
from moss.evaluation.aggregate import Score
from moss.evaluation.summary import Summary, show_interval, show_value


def print_summary(summary: Summary, stream: TextIO | None = None) -> None:
    """Write the headline table, its notes and what failed; wide enough for its columns when piped into a file."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    stream = stream or sys.stdout
    console = Console(file=stream, width=None if stream.isatty() else 160, highlight=False)
    title = f"{summary.benchmark} (protocol {summary.protocol})"
    table = Table(title=title, title_justify="left", show_lines=True)
    table.add_column("row")
    metrics = list(summary.labels)
    for metric in metrics:
        table.add_column(Text(summary.labels[metric]), justify="right")
    table.add_column("n scored / n expected", justify="right")
    for row in summary.rows:
        cells = [Text(_cell(metric, row.scores.get(metric))) for metric in metrics]
        table.add_row(Text(row.label), *cells, Text(coverage(list(row.scores.values()))))
    console.print(table)
    for note in summary.notes:
        console.print(Text(f"- {note}"))


def coverage(scores: list[Score]) -> str:
    """Scored and expected clips, once where all metrics agree, else one per metric."""
    pairs = [f"{score.n_scored} / {score.n_expected}" for score in scores]
    return pairs[0] if len(set(pairs)) == 1 else ", ".join(pairs) if pairs else "n/a"


def _cell(metric: Metric, score: Score | None) -> str:
    if score is None:
        return "n/a"
    return f"{show_value(metric, score.mean)}\n{show_interval(metric, score)}".strip()
