"""What a set of utterances amounts to: hours, speakers, languages, and how long they are, as text and as a PNG."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from moss.data.files import atomic_write
from moss.data.manifest import Utterance
from moss.data.shard_index import ShardIndex

_BINS = 12
_BAR_WIDTH = 40


@dataclass(frozen=True, slots=True)
class Length:
    """One utterance, for counting."""

    seconds: float
    language: str
    speaker: str
    split: str


def lengths_of_manifest(utterances: Iterable[Utterance]) -> list[Length]:
    """The utterances of a manifest that have a recording."""
    return [Length(u.duration_s, u.language, u.speaker, u.split) for u in utterances if u.audio]


def lengths_of_shards(index: ShardIndex) -> list[Length]:
    """The utterances of a shard folder, in whole frames."""
    spec = index.tokenizer.spec
    return [
        Length(spec.seconds(entry.frames), entry.language, entry.speaker, entry.split)
        for shard in index.shards
        for entry in shard.utterances
    ]


def summary_lines(lengths: Sequence[Length]) -> list[str]:
    """Totals, one line per language with its speakers, splits, and the length histogram."""
    total_s = sum(length.seconds for length in lengths)
    speakers = {(length.language, length.speaker) for length in lengths}
    lines = [
        f"utterances: {len(lengths)}   hours: {total_s / 3600:.3f}   speakers: {len({s for _, s in speakers})}   "
        f"languages: {len({language for language, _ in speakers})}"
    ]
    per_language: dict[str, list[Length]] = defaultdict(list)
    for length in lengths:
        per_language[length.language].append(length)
    for language, members in sorted(per_language.items()):
        names = sorted({length.speaker or "unknown" for length in members})
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        minutes = sum(length.seconds for length in members) / 60
        lines.append(f"  {language or 'unknown'}: {len(members)} utterances, {minutes:.1f} min, speakers: {shown}")
    splits = Counter(length.split or "no split" for length in lengths)
    lines.append("  split: " + ", ".join(f"{name} {count}" for name, count in sorted(splits.items())))
    return lines + _histogram_lines([length.seconds for length in lengths])


def source_lines(utterances: Iterable[Utterance]) -> list[str]:
    """Clips and hours of each source by language, one line a source; nothing where there is one source only."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for utterance in utterances:
        if utterance.audio:
            found[utterance.source][utterance.language].append(utterance.duration_s)
    lines = []
    for source, languages in sorted(found.items()):
        parts = [
            f"{language or 'unknown'} {len(seconds)} clips {sum(seconds) / 3600:.2f} h"
            for language, seconds in sorted(languages.items(), key=lambda item: -sum(item[1]))
        ]
        lines.append(f"{source or 'unknown source'}: {', '.join(parts)}")
    return lines if len(lines) > 1 else []


def write_histogram(path: Path, lengths: Sequence[Length], title: str) -> None:
    """Draw the length histogram, one colour per language, into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    languages = sorted({length.language for length in lengths})
    data = [[length.seconds for length in lengths if length.language == language] for language in languages]
    if lengths:
        axes.hist(data, bins=30, stacked=True, label=[language or "unknown" for language in languages])
        axes.legend(fontsize="small" if len(languages) < 8 else "xx-small", ncols=1 + len(languages) // 8)
    axes.set(xlabel="length (s)", ylabel="utterances", title=title)
    with atomic_write(path) as temporary:
        canvas.print_png(str(temporary))


def _histogram_lines(seconds: Sequence[float]) -> list[str]:
    if not seconds:
        return []
    width_s = _bin_width(max(seconds))
    counts = Counter(int(value // width_s) for value in seconds)
    highest = max(counts.values())
    lines = ["length (s):"]
    for position in range(max(counts) + 1):
        count = counts[position]
        bar = "#" * round(_BAR_WIDTH * count / highest)
        lines.append(f"  {position * width_s:6.1f} - {(position + 1) * width_s:6.1f} {count:7d} {bar}".rstrip())
    return lines


def _bin_width(longest_s: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that needs at most `_BINS` bins."""
    scale = 0.1
    while True:
        for factor in (1, 2, 5):
            if longest_s < factor * scale * _BINS:
                return factor * scale
        scale *= 10
