"""An audio tokenizer on held-out clips: encode once, decode with the first k codebooks, score against the original.

As in the public harness, the original resampled to the tokenizer's rate *is* the reference, both signals pass through
16-bit PCM, and the reconstruction has the length of the original. Source: MOSS-Audio-Tokenizer-Eval reconstruct.py
@b8e23bf.
"""

import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moss.config.evaluation import TOKENIZER_METRICS, BootstrapConfig, EvalConfig, Metric
from moss.data.audio import load_audio, write_wav
from moss.data.files import sha256_file
from moss.data.manifest import Utterance, read_manifest
from moss.data.progress import track
from moss.errors import ConfigError, EvaluationError, MossError
from moss.evaluation.items import Item
from moss.evaluation.protocol import METRICS
from moss.evaluation.records import Record
from moss.evaluation.report_charts import Chart, ChartGroup, Series
from moss.evaluation.summary import SummaryRow, make_row
from moss.spec import TokenizerSpec
from moss.tokenizer.interface import AudioTokenizer

logger = logging.getLogger(__name__)

ORIGINAL = "original audio"


class TokenizerTask:
    """Scores a tokenizer's reconstructions, made here where they are not on disk yet.

    Args:
        config: Manifest, split, codebook counts; `output` takes the reconstructions.
        tokenizer: What is scored.
        name: How the tokenizer is called.
        languages: Languages that the recogniser knows, None for any.

    Raises:
        ConfigError: no manifest is named.
        DataError: a manifest that cannot be read.
        EvaluationError: a count the tokenizer does not have; an empty split.
    """

    def __init__(
        self, config: EvalConfig, tokenizer: AudioTokenizer, *, name: str, languages: frozenset[str] | None
    ) -> None:
        if config.manifest is None:
            raise ConfigError("manifest: benchmark=tokenizer needs it, but it is not set")
        self.name = f"tokenizer {name}"
        self.metrics = tuple(config.metrics) or TOKENIZER_METRICS
        self.facts = {"tokenizer fingerprint": tokenizer.fingerprint}
        self._spec = tokenizer.spec
        self._counts = check_counts(config.codebooks, tokenizer.spec)
        utterances = choose_utterances(config.manifest, config.split, config.max_utterances, config.bootstrap.seed)
        made = reconstruct(tokenizer, utterances, self._counts, config.output / "reconstructions")
        self.items = tokenizer_items(made, self._counts, self.metrics, languages)
        self._foreign = [u for u in utterances if languages is not None and u.language not in languages]
        self.ranked_system = system_of(self._counts[-1])
        shown = sorted({self._counts[0], self._counts[len(self._counts) // 2], self._counts[-1]})
        self.shown_systems: Sequence[str] = [ORIGINAL, *(system_of(count) for count in shown)]

    def rows(self, records: Sequence[Record], bootstrap: BootstrapConfig) -> list[SummaryRow]:
        """The original audio (WER only), then one row per codebook count."""
        rows = []
        if any(item.system == ORIGINAL for item in self.items):
            rows.append(make_row(ORIGINAL, records, self.metrics, bootstrap, system=ORIGINAL))
        for count in self._counts:
            label, system = row_label(count, self._spec), system_of(count)
            rows.append(make_row(label, records, self.metrics, bootstrap, system=system, codebooks=count))
        return rows

    def group_rows(self, records: Sequence[Record], bootstrap: BootstrapConfig) -> list[SummaryRow]:
        """None: one split is scored at a time."""
        return []

    def notes(self) -> list[str]:
        """How many clips have no WER because of their language."""
        if Metric.WER not in self.metrics or not self._foreign:
            return []
        found = ", ".join(sorted({utterance.language for utterance in self._foreign}))
        return [f"{len(self._foreign)} clips ({found}) have no WER: the recogniser does not know their language."]

    def charts(self, rows: Sequence[SummaryRow]) -> list[ChartGroup]:
        """Each metric over the number of codebooks, with its interval."""
        if len(self._counts) < 2:
            return []
        return [("Quality over codebooks", [_chart(metric, rows) for metric in self.metrics if _has(metric, rows)])]


def _has(metric: Metric, rows: Sequence[SummaryRow]) -> bool:
    return any(
        row.codebooks is not None and metric in row.scores and row.scores[metric].mean is not None for row in rows
    )


def _chart(metric: Metric, rows: Sequence[SummaryRow]) -> Chart:
    scale = 100.0 if METRICS[metric].percent else 1.0
    scored = [(row.codebooks, row.scores[metric]) for row in rows if row.codebooks is not None and metric in row.scores]
    points = [(float(x), score) for x, score in scored if score.mean is not None]
    label = METRICS[metric].label
    series = Series(
        name=label,
        x=[x for x, _ in points],
        y=[scale * (score.mean or 0.0) for _, score in points],
        low=[scale * (score.low or 0.0) for _, score in points],
        high=[scale * (score.high or 0.0) for _, score in points],
    )
    unit = f"{label} (%)" if METRICS[metric].percent else label
    return Chart(title=label, x_label="codebooks", y_label=unit, series=[series])


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """The clips made of one utterance, or the reason why there are none."""

    utterance: Utterance
    reference: Path
    by_count: dict[int, Path]
    """Codebook count -> wav."""
    failure: str | None


def default_counts(num_codebooks: int) -> list[int]:
    """1, 2, 4, 8, ... and all."""
    powers = [2**i for i in range(num_codebooks.bit_length()) if 2**i < num_codebooks]
    return [*powers, num_codebooks]


def check_counts(counts: Sequence[int], spec: TokenizerSpec) -> list[int]:
    """Codebook counts to score, ascending; the default ones when none are given.

    Raises:
        EvaluationError: a count that the tokenizer does not have.
    """
    outside = [count for count in counts if not 1 <= count <= spec.num_codebooks]
    if outside:
        raise EvaluationError(f"codebooks={outside}: this tokenizer has 1 to {spec.num_codebooks} codebooks")
    return sorted(set(counts)) or default_counts(spec.num_codebooks)


def system_of(count: int) -> str:
    """Name of the system that decodes with `count` codebooks."""
    return f"{count} codebook" + ("" if count == 1 else "s")


def row_label(count: int, spec: TokenizerSpec) -> str:
    """Name of a row of the table, with its bit rate."""
    bits_per_s = count * math.log2(spec.codebook_size) * spec.frames_per_s
    return f"{system_of(count)} ({bits_per_s:.0f} bit/s)"


def choose_utterances(manifest: Path, split: str, max_utterances: int | None, seed: int) -> list[Utterance]:
    """Utterances to score, in the order of the manifest.

    Args:
        manifest: utterances.jsonl.
        split: "heldout", "train", or empty for all.
        max_utterances: Draw that many at random; None takes all.
        seed: Of the draw.

    Raises:
        DataError: the manifest is missing or has a broken line (path:line).
        EvaluationError: no utterance of that split.
    """
    utterances = read_manifest(manifest)
    chosen = [utterance for utterance in utterances if not split or utterance.split == split]
    if not chosen:
        splits = sorted({utterance.split or "(none)" for utterance in utterances})
        found = ", ".join(splits) or "nothing"
        raise EvaluationError(
            f"{manifest}: none of {len(utterances)} utterances has split {split!r}, found {found}; "
            "set split=... to one of these, or split='' for all"
        )
    if max_utterances is not None and max_utterances < len(chosen):
        kept = set(random.Random(seed).sample(range(len(chosen)), max_utterances))
        chosen = [utterance for i, utterance in enumerate(chosen) if i in kept]
    return chosen


def reconstruct(
    tokenizer: AudioTokenizer, utterances: Sequence[Utterance], counts: Sequence[int], folder: Path
) -> list[Reconstruction]:
    """Make the wavs that are not there yet; file names carry tokenizer and clip hashes, so an old one is never taken.

    A clip that cannot be read or encoded becomes a failure, not an exception.
    """
    made = []
    for utterance in track(utterances, "reconstructing", len(utterances)):
        try:
            made.append(_reconstruct(tokenizer, utterance, counts, folder / tokenizer.fingerprint))
        except MossError as error:
            logger.warning("%s cannot be reconstructed: %s", utterance.id, error)
            source = Path(utterance.audio)
            made.append(Reconstruction(utterance=utterance, reference=source, by_count={}, failure=str(error)))
    return made


def tokenizer_items(
    reconstructions: Sequence[Reconstruction],
    counts: Sequence[int],
    metrics: Sequence[Metric],
    languages: frozenset[str] | None,
) -> list[Item]:
    """The original (WER only) and every codebook count of every utterance.

    Args:
        reconstructions: One per utterance.
        counts: Codebook counts.
        metrics: What is measured.
        languages: Languages that the recogniser knows, None for any; the others have no WER.
    """
    items = []
    for count in (None, *counts):
        for made in reconstructions:
            knows = languages is None or made.utterance.language in languages
            wanted = [metric for metric in metrics if metric is not Metric.WER or knows]
            if count is None:
                wanted = [metric for metric in wanted if metric is Metric.WER]
            wav = made.reference if count is None else made.by_count.get(count)
            items.append(
                Item(
                    system=ORIGINAL if count is None else system_of(count),
                    group=made.utterance.split,
                    utterance=made.utterance.id,
                    text=made.utterance.text,
                    language=made.utterance.language,
                    metrics=tuple(wanted),
                    wav=None if made.failure else wav,
                    failure=made.failure,
                    target=made.reference,
                )
            )
    return [item for item in items if item.metrics]


def _reconstruct(
    tokenizer: AudioTokenizer, utterance: Utterance, counts: Sequence[int], folder: Path
) -> Reconstruction:
    source, rate_hz = Path(utterance.audio), tokenizer.spec.sampling_rate_hz
    try:
        name = f"{utterance.id}-{sha256_file(source)[:8]}.wav"
    except OSError as error:
        raise EvaluationError(f"{source} cannot be read: {error.strerror}") from error
    reference = folder / "original" / name
    by_count = {count: folder / f"codebooks-{count:02d}" / name for count in counts}
    missing = [count for count, path in by_count.items() if not path.is_file()]
    if missing or not reference.is_file():
        wave = load_audio(source, rate_hz)
        write_wav(reference, wave, rate_hz)
        # What the tokenizer hears is what it is compared with: the clip after 16-bit PCM.
        heard = load_audio(reference, rate_hz)
        codes = tokenizer.encode([heard])[0]
        for count in missing:
            decoded = tokenizer.decode([codes[:, :count]], [heard.shape[0]])[0]
            write_wav(by_count[count], decoded, rate_hz)
    return Reconstruction(utterance=utterance, reference=reference, by_count=by_count, failure=None)
