"""Quality over bit rate: what the charts of the report and curves.png show, and the drawing of the latter.

Published rows are drawn hollow and in grey. Their SIM is a cosine of WavLM embeddings: it has a chart of its own and
never shares an axis with another encoder's.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moss.config.evaluation import Metric
from moss.data.files import write_bytes
from moss.evaluation.protocol import METRICS
from moss.evaluation.published import Published
from moss.evaluation.report_charts import Chart, Series
from moss.evaluation.summary import SummaryRow

X_LABEL = "bit/s"
PUBLISHED_NAME = "published"
_COLUMNS = 3
_MARKERS = "osD^v<>pPX*hd"
_PANEL_INCHES = (4.6, 3.3)


def bitrate_charts(rows: Sequence[SummaryRow], labels: Mapping[Metric, str], published: Published) -> list[Chart]:
    """One chart for each metric that has values, and one of the published SIM.

    Args:
        rows: Of the table; rows of one family with bit rates make a curve, a row without a bit rate a level line.
        labels: Metrics and their headings, in the order of the charts.
        published: Rows of others, shown where a metric is defined like ours.
    """
    charts = [chart for metric in labels if (chart := _chart(metric, labels[metric], rows, published)) is not None]
    if charts and Metric.SIM in labels:
        theirs = [(row.label, row.bits_per_s, row.sim_wavlm) for row in published.rows]
        charts.append(
            Chart(
                title="SIM (WavLM), published only",
                x_label=X_LABEL,
                y_label="SIM (WavLM)",
                series=[_hollow(theirs)],
                log_x=True,
                note=f"{_note(published)}; not to be compared with {labels[Metric.SIM]}",
            )
        )
    return charts


def write_curves(path: Path, charts: Sequence[Chart], published: Published) -> None:
    """Draw charts side by side into a PNG, each published model with a mark of its own.

    Raises:
        DataError: the disk is full.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    lines = -(-len(charts) // _COLUMNS)
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * _COLUMNS, height * lines + 1.6), layout="constrained")
    FigureCanvasAgg(figure)
    colours = {name: f"C{i}" for i, name in enumerate(_families(charts))}
    handles: dict[str, Any] = {}
    rates = [rate for chart in charts for line in chart.series for rate in line.x]
    limits = (min(rates) / 1.2, max(rates) * 1.2)
    for i, chart in enumerate(charts):
        axes = figure.add_subplot(lines, _COLUMNS, i + 1)
        for line in chart.series:
            if line.hollow:
                _draw_hollow(axes, line, handles)
            else:
                handles[line.name] = _draw_line(axes, line, colours[line.name])
        axes.set(title=chart.title, xlabel=chart.x_label, xscale="log", xlim=limits)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    figure.suptitle(
        f"Bars: bootstrap intervals. Hollow grey marks: {published.mark}.", fontsize=9, color="dimgray", wrap=True
    )
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    write_bytes(path, content.getvalue())


def _chart(metric: Metric, label: str, rows: Sequence[SummaryRow], published: Published) -> Chart | None:
    scored = [row for row in rows if metric in row.scores and row.scores[metric].mean is not None]
    curves = [row for row in scored if row.bits_per_s is not None]
    theirs = [(row.label, row.bits_per_s, value) for row in published.rows if (value := row.value(metric)) is not None]
    if not curves:
        return None
    rates = [row.bits_per_s for row in curves if row.bits_per_s is not None] + [rate for _, rate, _ in theirs]
    families = dict.fromkeys(row.family for row in curves)
    series = [_curve(metric, family, [row for row in curves if row.family == family]) for family in families]
    series += [_level(metric, row, min(rates), max(rates)) for row in scored if row.bits_per_s is None]
    if theirs:
        series.append(_hollow(theirs))
    unit = f"{label} (%)" if METRICS[metric].percent else label
    arrow = "higher is better" if METRICS[metric].higher_is_better else "lower is better"
    return Chart(
        title=unit,
        x_label=X_LABEL,
        y_label=unit,
        series=series,
        log_x=True,
        note=f"{arrow}; {_note(published)}" if theirs else arrow,
    )


def _curve(metric: Metric, family: str, rows: Sequence[SummaryRow]) -> Series:
    rows = sorted(rows, key=lambda row: row.bits_per_s or 0.0)
    scores = [row.scores[metric] for row in rows]
    scale = _scale(metric)
    return Series(
        name=family,
        x=[row.bits_per_s or 0.0 for row in rows],
        y=[scale * (score.mean or 0.0) for score in scores],
        low=[scale * (score.low or 0.0) for score in scores],
        high=[scale * (score.high or 0.0) for score in scores],
    )


def _level(metric: Metric, row: SummaryRow, left: float, right: float) -> Series:
    """What has no bit rate, across the whole width."""
    score, scale = row.scores[metric], _scale(metric)
    return Series(
        name=row.label,
        x=[left, right],
        y=[scale * (score.mean or 0.0)] * 2,
        low=[scale * (score.low or 0.0)] * 2,
        high=[scale * (score.high or 0.0)] * 2,
        level=True,
    )


def _hollow(points: Sequence[tuple[str, float, float]]) -> Series:
    return Series(
        name=PUBLISHED_NAME,
        x=[rate for _, rate, _ in points],
        y=[value for _, _, value in points],
        point_names=[name for name, _, _ in points],
        hollow=True,
    )


def _note(published: Published) -> str:
    return f"hollow: {published.mark}; source: {published.source}"


def _scale(metric: Metric) -> float:
    return 100.0 if METRICS[metric].percent else 1.0


def _families(charts: Sequence[Chart]) -> list[str]:
    return list(dict.fromkeys(line.name for chart in charts for line in chart.series if not line.hollow))


def _draw_line(axes: Any, line: Series, colour: str) -> Any:
    if line.level:
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.12, linewidth=0)
        return axes.plot(line.x, line.y, "--", color=colour, linewidth=1.2)[0]
    # An interval of the mean of a few clips need not hold a mean that failures have moved; bars are never negative.
    below = [max(0.0, y - low) for y, low in zip(line.y, line.low, strict=True)]
    above = [max(0.0, high - y) for y, high in zip(line.y, line.high, strict=True)]
    return axes.errorbar(
        line.x, line.y, yerr=(below, above), color=colour, marker="o", markersize=4, linewidth=1.4, capsize=2
    )


def _draw_hollow(axes: Any, line: Series, handles: dict[str, Any]) -> None:
    models = list(dict.fromkeys(name.partition(" (")[0] for name in line.point_names))
    for i, model in enumerate(models):
        points = [j for j, name in enumerate(line.point_names) if name.partition(" (")[0] == model]
        handles[f"{model} (published)"] = axes.scatter(
            [line.x[j] for j in points],
            [line.y[j] for j in points],
            marker=_MARKERS[i % len(_MARKERS)],
            facecolors="none",
            edgecolors="gray",
            s=22,
            linewidths=0.9,
        )
