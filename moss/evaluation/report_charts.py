"""Line charts as inline SVG: no script, colours from the page's style sheet, the values in a table underneath."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 12, 40
_MAX_POINTS = 400
_TABLE_POINTS = 12
_CATEGORICAL_COLOURS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line. `low` and `high`, where given, draw an interval band around it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = field(default_factory=tuple)
    high: Sequence[float] = field(default_factory=tuple)
    point_names: Sequence[str] = field(default_factory=tuple)
    """What each point is, where they are not settings of one thing."""
    hollow: bool = False
    """Single points without a line, filled with nothing, in grey: what others measured."""
    level: bool = False
    """One value for every x, drawn dashed and without points; `x` holds the two ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A titled chart of one or more lines."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    ordered: bool = False
    """The lines have an order (codebooks): coloured along one ramp instead of by distinct hues."""
    log_x: bool = False
    """Equal ratios of x are equally far apart."""
    note: str = ""
    """Said under the chart."""


ChartGroup = tuple[str, Sequence[Chart]]
"""Charts under one heading."""


def render_chart(chart: Chart) -> str:
    """The chart as a `<figure>`; every text is escaped. Long lines are drawn as means of equal runs of points."""
    series = [_thinned(line) for line in chart.series]
    x_values = [value for line in series for value in line.x]
    x_axis = (_Axis.logarithmic if chart.log_x else _Axis.tight)(x_values, _LEFT, WIDTH - _RIGHT)
    y_values = [value for line in series for value in (*line.y, *line.low, *line.high)]
    y_axis = _Axis.covering(y_values, HEIGHT - _BOTTOM, _TOP)
    colours = [
        "var(--muted)" if line.hollow else _colour(i, len(series), chart.ordered) for i, line in enumerate(series)
    ]
    drawn = "".join(_draw(line, colour, x_axis, y_axis) for line, colour in zip(series, colours, strict=True))
    note = "; ".join(text for text in (_thinning_note(chart.series), chart.note) if text)
    return (
        f"<figure><h4>{escape(chart.title)}</h4>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_spoken(chart), quote=True)}">'
        f"{_grid(x_axis, y_axis, chart)}{drawn}</svg>"
        f"{_legend(series, colours)}"
        f"<figcaption class=muted>{escape(note)}</figcaption>"
        f"<details class=small><summary>Values</summary>{_table(chart)}</details></figure>"
    )


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float
    ticks: tuple[float, ...]
    start: float
    end: float
    is_log: bool = False

    @classmethod
    def tight(cls, values: Sequence[float], start: float, end: float) -> "_Axis":
        """An axis from the least to the greatest value, with round ticks within them."""
        return cls.covering(values, start, end, tight=True)

    @classmethod
    def logarithmic(cls, values: Sequence[float], start: float, end: float) -> "_Axis":
        """An axis over positive values with ticks at 1, 2 and 5 times powers of ten, a little wider than the values."""
        low, high = min(values) / 1.1, max(values) * 1.1
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = tuple(factor * 10.0**power for power in powers for factor in (1, 2, 5))
        return cls(low, high, tuple(tick for tick in ticks if low <= tick <= high), start, end, is_log=True)

    @classmethod
    def covering(cls, values: Sequence[float], start: float, end: float, *, tight: bool = False) -> "_Axis":
        """An axis with round ticks around `values` (only within them when `tight`), from pixel `start` to `end`."""
        low, high = min(values), max(values)
        if low == high:
            margin = abs(low) * 0.1 or 1.0
            low, high = low - margin, high + margin
        raw = (high - low) / 5
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
        if tight:
            first, last = math.ceil(low / step), math.floor(high / step)
        else:
            first, last = math.floor(low / step), math.ceil(high / step)
            low, high = first * step, last * step
        return cls(low, high, tuple(i * step for i in range(first, last + 1)), start, end)

    def pixel(self, value: float) -> float:
        if self.is_log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def _thinned(line: Series) -> Series:
    run = _run_length(line)
    if run == 1:
        return line
    starts = range(0, len(line.x), run)

    def means(values: Sequence[float]) -> list[float]:
        return [math.fsum(values[i : i + run]) / len(values[i : i + run]) for i in starts] if values else []

    return dataclasses.replace(
        line, x=means(line.x), y=means(line.y), low=means(line.low), high=means(line.high), point_names=()
    )


def _run_length(line: Series) -> int:
    return math.ceil(len(line.x) / _MAX_POINTS)


def _thinning_note(series: Sequence[Series]) -> str:
    runs = {line.name: _run_length(line) for line in series if _run_length(line) > 1}
    return "; ".join(f"{name}: each point is the mean of {run} values" for name, run in runs.items())


def _draw(line: Series, colour: str, x_axis: _Axis, y_axis: _Axis) -> str:
    def points(values: Sequence[float]) -> list[str]:
        return [f"{x_axis.pixel(x):.1f},{y_axis.pixel(y):.1f}" for x, y in zip(line.x, values, strict=True)]

    if line.hollow:
        return _dots(line, colour, x_axis, y_axis)
    band = ""
    if line.low and line.high:
        outline = " ".join(points(line.high) + points(line.low)[::-1])
        band = f'<polygon class="band" style="fill:{colour}" points="{outline}"/>'
    dashes = ";stroke-dasharray:6 4" if line.level else ""
    path = f'<polyline class="line" style="stroke:{colour}{dashes}" points="{" ".join(points(line.y))}"/>'
    if line.level or len(line.x) > 40:
        return band + path
    return band + path + _dots(line, colour, x_axis, y_axis)


def _dots(line: Series, colour: str, x_axis: _Axis, y_axis: _Axis) -> str:
    style = f"fill:none;stroke:{colour}" if line.hollow else f"fill:{colour}"
    names = line.point_names or [line.name] * len(line.x)
    return "".join(
        f'<circle cx="{x_axis.pixel(x):.1f}" cy="{y_axis.pixel(y):.1f}" r="3.5" style="{style}">'
        f"<title>{escape(name)}: {_number(y)} at {_number(x)}</title></circle>"
        for name, x, y in zip(names, line.x, line.y, strict=True)
    )


def _grid(x_axis: _Axis, y_axis: _Axis, chart: Chart) -> str:
    parts = []
    for tick in y_axis.ticks:
        y = y_axis.pixel(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in x_axis.ticks:
        x = x_axis.pixel(tick)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">{_number(tick)}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(chart.x_label)}</text>')
    return "".join(parts)


def _legend(series: Sequence[Series], colours: Sequence[str]) -> str:
    if len(series) == 1:
        return ""
    entries = "".join(
        f"<li>{_swatch(line, colour)}{escape(line.name)}</li>" for line, colour in zip(series, colours, strict=True)
    )
    return f'<ul class="legend">{entries}</ul>'


def _swatch(line: Series, colour: str) -> str:
    if line.hollow:
        return f'<span class="swatch hollow" style="border-color:{colour}"></span>'
    return f'<span class="swatch" style="background:{colour}"></span>'


def _table(chart: Chart) -> str:
    """First, last and evenly chosen values of every line, for readers who cannot see the drawing."""
    rows = []
    for line in chart.series:
        if line.level:
            rows.append(_table_row(line.name, _number(line.y[0])))
            continue
        if line.point_names:
            rows += [
                _table_row(name, f"{_number(line.x[i])}: {_number(line.y[i])}")
                for i, name in enumerate(line.point_names)
            ]
            continue
        last = len(line.x) - 1
        chosen = sorted({round(i * last / (_TABLE_POINTS - 1)) for i in range(_TABLE_POINTS)})
        cells = ", ".join(f"{_number(line.x[i])}: {_number(line.y[i])}" for i in chosen)
        rows.append(_table_row(line.name, cells))
    head = f"<tr><th scope=col>line</th><th scope=col>{escape(chart.x_label)}: {escape(chart.y_label)}</th></tr>"
    body = f"<thead>{head}</thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll" tabindex="0"><table class="text-table">{body}</table></div>'


def _table_row(name: str, cells: str) -> str:
    return f"<tr><th scope=row>{escape(name)}</th><td>{cells}</td></tr>"


def _spoken(chart: Chart) -> str:
    ends = "; ".join(f"{line.name} from {_number(line.y[0])} to {_number(line.y[-1])}" for line in chart.series)
    return f"{chart.title}. {chart.y_label} over {chart.x_label}: {ends}."


def _colour(index: int, count: int, ordered: bool) -> str:
    if not ordered:
        return f"var(--series-{index % _CATEGORICAL_COLOURS})"
    share = 100 * index / max(1, count - 1)
    return f"color-mix(in oklab, var(--ramp-to) {share:.0f}%, var(--ramp-from))"


def _number(value: float) -> str:
    if value == int(value) and abs(value) < 1e7:
        return str(int(value))
    return f"{value:.4g}"
