"""report.html: one file with everything inside, opened from disk, without network.

What it shows comes from a `Summary`, the records behind it and the items they are about; nothing is computed here but
the order of the utterances: failed ones first, then by the first metric, worst first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from moss.config.evaluation import Metric
from moss.data.files import atomic_write
from moss.evaluation.items import Item
from moss.evaluation.metrics.wer import word_errors
from moss.evaluation.protocol import METRICS
from moss.evaluation.records import Record
from moss.evaluation.report_charts import ChartGroup, render_chart
from moss.evaluation.report_clips import Clip, render_clips
from moss.evaluation.report_text import (
    render_corpus_rates,
    render_edits,
    render_provenance,
    render_rows,
    render_scores,
)
from moss.evaluation.summary import Summary

_PROMPT_LABELS = {"reference": "voice reference", "other_clip": "voice reference (another clip)"}


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything the page is made of."""

    summary: Summary
    records: Sequence[Record]
    items: Sequence[Item]
    charts: Sequence[ChartGroup]
    ranked_system: str
    """The system whose scores order the utterances."""
    shown_systems: Sequence[str]
    """Systems with players, in that order; ground truth or original first."""
    audio_utterances: int

    @cached_property
    def by_utterance(self) -> dict[str, dict[str, Item]]:
        """Utterance -> system -> item."""
        table: dict[str, dict[str, Item]] = {}
        for item in self.items:
            table.setdefault(item.utterance, {})[item.system] = item
        return table

    @cached_property
    def by_clip(self) -> dict[tuple[str, str], list[Record]]:
        """(System, utterance) -> its records."""
        table: dict[tuple[str, str], list[Record]] = {}
        for record in self.records:
            table.setdefault((record.system, record.utterance), []).append(record)
        return table


def write_report(path: Path, report: Report) -> None:
    """Write the page atomically."""
    summary = report.summary
    sections = [("summary", "Summary", _summary_section(summary))]
    for title, charts in report.charts:
        drawn = "".join(render_chart(chart) for chart in charts)
        sections.append((_anchor(title), title, f'<div class="charts">{drawn}</div>'))
    sections.append(("utterances", "Utterances, worst first", _utterance_section(report)))
    sections.append(("provenance", "Provenance", render_provenance(summary)))
    assets = files("moss.evaluation") / "assets"
    page = Template((assets / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"Scores: {summary.benchmark}"),
        subtitle=escape(f"protocol {summary.protocol} · {summary.provenance['finished_at']}"),
        css=(assets / "report.css").read_text(encoding="utf-8"),
        js=(assets / "report.js").read_text(encoding="utf-8"),
        navigation="".join(f'<li><a href="#{anchor}">{escape(title)}</a></li>' for anchor, title, _ in sections),
        sections="\n".join(
            f'<section id="{anchor}" aria-labelledby="{anchor}-title">'
            f'<h2 id="{anchor}-title">{escape(title)}</h2>{body}</section>'
            for anchor, title, body in sections
        ),
        footer=escape("Nothing on this page is loaded from a network."),
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _anchor(title: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())


def _summary_section(summary: Summary) -> str:
    intervals = "Mean over all expected utterances with a 95 % bootstrap interval"
    confidence = summary.provenance.get("settings", {}).get("bootstrap", {}).get("confidence_frac")
    if confidence is not None:
        intervals = f"Mean over all expected utterances with a {100 * confidence:g} % bootstrap interval"
    parts = [render_rows(summary, summary.rows, intervals)]
    if summary.group_rows:
        parts.append(
            "<details class=small><summary>By group of texts</summary>"
            f"{render_rows(summary, summary.group_rows, intervals)}</details>"
        )
    parts.append(render_corpus_rates(summary))
    parts.append(f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in summary.notes)}</ul>')
    return "".join(parts)


def _utterance_section(report: Report) -> str:
    order = sorted(report.by_utterance, key=lambda utterance: _badness(report, utterance), reverse=True)
    with_audio = min(report.audio_utterances, len(order))
    first_metric = next(iter(report.summary.labels.values()))
    intro = f"{len(order)} utterances, ordered by {report.ranked_system}: failed ones first, then by {first_metric}."
    if with_audio < len(order):
        intro += f" Only the first {with_audio} have players and spectrograms, so that the page stays small."
    legend = (
        "In transcripts, <del>struck</del> words were not heard, <ins>underlined</ins> words were heard but not "
        'written, <span class="substituted"><del>written</del> <ins>heard</ins></span> were mistaken.'
    )
    cards = [_card(report, utterance, audio=i < with_audio) for i, utterance in enumerate(order)]
    return f'<p>{escape(intro)}</p><p class="small">{legend}</p>' + "\n".join(cards)


def _badness(report: Report, utterance: str) -> tuple[float, ...]:
    """Sort key: number of failures, then how bad each score of the ranked system is."""
    records = report.by_clip.get((report.ranked_system, utterance), [])
    failed = sum(1 for record in records if record.value is None)
    signed = [
        -record.value if METRICS[record.metric].higher_is_better else record.value
        for record in records
        if record.value is not None
    ]
    # Fewer scores must not compare as shorter tuples do: pad with neutral zeros.
    return (float(failed), *signed, *[0.0] * (len(Metric) - len(signed)))


def _card(report: Report, utterance: str, *, audio: bool) -> str:
    by_system = report.by_utterance[utterance]
    first = next(iter(by_system.values()))
    tags = [tag for tag in (first.group, first.language) if tag]
    head = f"<h3>{escape(utterance)}</h3>" + "".join(f'<span class="tag">{escape(tag)}</span>' for tag in tags)
    lines = [_system_line(report, by_system[system]) for system in report.shown_systems if system in by_system]
    clips = render_clips(_clips(report, by_system)) if audio else ""
    return (
        f'<article class="utterance"><header>{head}</header><p>{escape(first.text)}</p>'
        f"{''.join(lines)}{clips}</article>"
    )


def _system_line(report: Report, item: Item) -> str:
    records = report.by_clip.get((item.system, item.utterance), [])
    failures = sorted({record.error for record in records if record.error is not None})
    parts = [f'<p class="small"><strong>{escape(item.system)}</strong>: {render_scores(report.summary, records)}</p>']
    parts += [f'<p class="failure small">{escape(failure)}</p>' for failure in failures]
    for record in records:
        if record.metric is Metric.WER and record.value is not None:
            errors = word_errors(record.extra["text"], record.extra["hypothesis"], item.language)
            transcript = render_edits(errors.edits) if errors.num_errors else escape(errors.hypothesis_norm)
            language = escape(item.language, quote=True)
            heard = f'<span class="muted small" lang="en">heard:</span> {transcript}'
            parts.append(f'<p class="transcript" lang="{language}">{heard}</p>')
    return "".join(parts)


def _clips(report: Report, by_system: dict[str, Item]) -> list[Clip]:
    """The players of an utterance: the voice it is compared with, then every shown system that made a clip."""
    ranked = by_system.get(report.ranked_system)
    clips = []
    if ranked is not None and ranked.prompt is not None and ranked.prompt_kind in _PROMPT_LABELS:
        clips.append(Clip(label=_PROMPT_LABELS[ranked.prompt_kind], path=ranked.prompt))
    for system in report.shown_systems:
        item = by_system.get(system)
        if item is not None and item.wav is not None:
            clips.append(Clip(label=system, path=item.wav))
    return clips
