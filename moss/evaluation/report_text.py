"""Tables and coloured transcripts of the report. Every text that comes from data is escaped here."""

import json
from collections.abc import Sequence
from html import escape

from moss.config.evaluation import Metric
from moss.evaluation.aggregate import Score
from moss.evaluation.metrics.wer import Edit
from moss.evaluation.records import Record
from moss.evaluation.summary import Summary, SummaryRow, show_interval, show_value


def render_edits(edits: Sequence[Edit]) -> str:
    """An alignment as text: deleted words struck through, inserted ones underlined, substitutions as both."""
    parts = []
    for edit in edits:
        spoken, heard = escape(" ".join(edit.reference)), escape(" ".join(edit.hypothesis))
        if edit.kind == "equal":
            parts.append(spoken)
        elif edit.kind == "delete":
            parts.append(f"<del>{spoken}</del>")
        elif edit.kind == "insert":
            parts.append(f"<ins>{heard}</ins>")
        else:
            parts.append(f'<span class="substituted"><del>{spoken}</del> <ins>{heard}</ins></span>')
    return " ".join(parts)


def render_rows(summary: Summary, rows: Sequence[SummaryRow], caption: str) -> str:
    """Rows of scores as a table; an incomplete count is marked."""
    metrics = list(summary.labels)
    head = "".join(f"<th scope=col>{escape(summary.labels[metric])}</th>" for metric in metrics)
    body = "".join(
        f"<tr><th scope=row>{escape(row.title)}</th>"
        + "".join(f"<td>{_cell(metric, row.scores.get(metric))}</td>" for metric in metrics)
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table><caption class="small muted">{escape(caption)}</caption>'
        f"<thead><tr><th scope=col>row</th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def render_corpus_rates(summary: Summary) -> str:
    """Corpus WER beside the macro one, with the mean of what could be scored."""
    rows = []
    for row in (*summary.rows, *summary.group_rows):
        score = row.scores.get(Metric.WER)
        if score is None or score.corpus is None:
            continue
        corpus = Score(mean=score.corpus, low=score.corpus_low, high=score.corpus_high, n_scored=0, n_expected=0)
        shown = f"{show_value(Metric.WER, corpus.mean)} {show_interval(Metric.WER, corpus)}"
        cells = (show_value(Metric.WER, score.mean), shown, show_value(Metric.WER, score.mean_scored))
        rows.append(
            f"<tr><th scope=row>{escape(row.label)}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        )
    if not rows:
        return ""
    head = "".join(f"<th scope=col>{name}</th>" for name in ("row", "macro", "corpus", "macro, scored clips only"))
    return (
        "<details class=small><summary>Macro and corpus error rates</summary>"
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        "</details>"
    )


def render_scores(summary: Summary, records: Sequence[Record]) -> str:
    """The scores of one clip in a line."""
    parts = []
    for record in records:
        label = escape(summary.labels[record.metric])
        value = "failed" if record.value is None else show_value(record.metric, record.value)
        parts.append(f"{label} <strong>{value}</strong>")
    return " · ".join(parts)


def render_provenance(summary: Summary) -> str:
    """How to repeat the run."""
    plain = summary.provenance
    facts = {
        "Command": plain.get("command", ""),
        "Git commit": plain.get("git", ""),
        "Protocol": summary.protocol,
        "Missing clips": summary.missing.value,
        "Finished": plain.get("finished_at", ""),
        "Machine": f"{plain.get('machine', '')}, Python {plain.get('python', '')}",
        "Packages": ", ".join(f"{name} {number}" for name, number in plain.get("packages", {}).items()),
    }
    for metric, backend in summary.backends.items():
        facts[f"Backend of {summary.labels.get(metric, metric.value)}"] = backend
    rows = "".join(
        f"<tr><th scope=row>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in facts.items()
    )
    settings = escape(json.dumps(plain.get("settings", {}), indent=2, ensure_ascii=False))
    return (
        f'<div class="scroll" tabindex="0"><table class="text-table small"><tbody>{rows}</tbody></table></div>'
        f"<details><summary>Settings</summary><pre>{settings}</pre></details>"
    )


def _cell(metric: Metric, score: Score | None) -> str:
    if score is None:
        return '<span class="muted">n/a</span>'
    counts = f"n {score.n_scored} / {score.n_expected}"
    if score.n_invalid:
        counts += f", {score.n_invalid} invalid"
    complete = score.n_scored == score.n_expected and not score.n_invalid
    kind = "interval" if complete else "interval incomplete"
    return (
        f"{show_value(metric, score.mean)}<span class=interval>{show_interval(metric, score)}</span>"
        f'<span class="{kind}">{counts}</span>'
    )
