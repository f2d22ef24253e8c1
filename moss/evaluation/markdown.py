"""The summary as a Markdown file: the table, and everything needed to believe it and to make it again."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from moss.config.evaluation import Metric
from moss.data.files import atomic_write
from moss.evaluation.aggregate import Score
from moss.evaluation.protocol import METRICS
from moss.evaluation.summary import Summary, SummaryRow, show_value
from moss.evaluation.table import coverage

INCOMPLETE_MARK = "†"


def write_markdown(path: Path, summary: Summary, facts: Mapping[str, str]) -> None:
    """Write the table of a summary atomically.

    Args:
        path: The file.
        summary: What it shows.
        facts: What else identifies the run, such as the revision of each system.

    Raises:
        DataError: the disk is full.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(render_markdown(summary, facts), encoding="utf-8")


def render_markdown(summary: Summary, facts: Mapping[str, str]) -> str:
    """The file as text; a score that does not rest on every clip carries a dagger."""
    plain = summary.provenance
    heading = {
        "protocol": summary.protocol,
        "hardware": plain.get("machine", ""),
        "versions": f"python {plain.get('python', '')}, "
        + ", ".join(f"{name} {number}" for name, number in plain.get("packages", {}).items()),
        "code": plain.get("git", ""),
        "date": f"{plain.get('finished_at', '')}, one run",
        "command": f"`{plain.get('command', '')}`",
    }
    heading |= {summary.labels[metric]: backend for metric, backend in _models(summary).items()} | dict(facts)
    lines = [f"# Scores: {summary.benchmark}", "", *(f"- {name}: {value}" for name, value in heading.items())]
    lines += ["", *_table(summary, summary.rows), ""]
    if any(INCOMPLETE_MARK in line for line in lines):
        lines += [f"{INCOMPLETE_MARK} Not every clip could be scored; the failed ones count as said below.", ""]
    lines += [f"- {note}" for note in summary.notes]
    return "\n".join(lines) + "\n"


def _table(summary: Summary, rows: Sequence[SummaryRow]) -> list[str]:
    metrics = list(summary.labels)
    head = ["system", "bit/s", *(summary.labels[metric] for metric in metrics), "n scored / n expected"]
    lines = [_line(head), _line(["---"] + ["---:"] * (len(head) - 1))]
    for row in rows:
        rate = f"{row.bits_per_s:.0f}" if row.bits_per_s is not None else ""
        cells = [_cell(metric, row.scores.get(metric)) for metric in metrics]
        lines.append(_line([row.label, rate, *cells, coverage(list(row.scores.values()))]))
    return lines


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cell(metric: Metric, score: Score | None) -> str:
    if score is None or score.mean is None:
        return ""
    scale, digits = (100, 1) if METRICS[metric].percent else (1, 3)
    text = show_value(metric, score.mean)
    if score.low is not None and score.high is not None:
        text += f" ({scale * score.low:.{digits}f} to {scale * score.high:.{digits}f})"
    return text if score.n_scored == score.n_expected else f"{text} {INCOMPLETE_MARK}"


def _models(summary: Summary) -> dict[Metric, str]:
    """Models behind metrics; packages alone stand among the versions."""
    return {metric: backend for metric, backend in summary.backends.items() if "sha256" in backend}
