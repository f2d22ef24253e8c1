"""Tokenizers and codecs on held-out clips: each clip encoded and decoded in every setting, scored against the original.

What is made of a clip, and what it is compared with, is settled in `reconstruction.py`.
"""

from collections.abc import Sequence
from pathlib import Path

from moss.config.evaluation import TOKENIZER_METRICS, BootstrapConfig, EvalConfig, Metric
from moss.data.manifest import Utterance
from moss.evaluation.clips import ClipChoice
from moss.evaluation.curves import bitrate_charts, write_curves
from moss.evaluation.items import Item
from moss.evaluation.markdown import write_markdown
from moss.evaluation.metrics.wer import num_tokens
from moss.evaluation.protocol import METRICS, TOKENIZER_PROTOCOL
from moss.evaluation.published import published_tokenizers
from moss.evaluation.reconstruction import Original, Reconstruction, reconstruct, write_originals
from moss.evaluation.records import Record
from moss.evaluation.report_charts import ChartGroup
from moss.evaluation.summary import Summary, SummaryRow, make_row
from moss.evaluation.systems import System, TokenizerSystem, Variant

ORIGINAL = "original audio"
CHART_GROUP = "Quality over bit rate"

_DEFINITIONS = {
    Metric.PESQ_NB_8K: "PESQ-NB@16k is what the published harness computes, PESQ-NB@8k is the standard's rate.",
    Metric.SIM: "SIM compares a reconstruction with its own original; it is on another scale than WavLM SIM.",
    Metric.MEL_DISTANCE: "Mel and STFT distance add two scales (windows of 2048 and 512) of linear and logarithmic "
    "differences at 16 kHz; 0 is best.",
}


class TokenizerTask:
    """Scores what systems make of the same clips; clips are made here where they are not on disk yet.

    Args:
        config: Metrics; `output` takes the reconstructions.
        choice: The clips.
        systems: Tokenizers and codecs, the one of interest first.
        languages: Languages that the recogniser knows, None for any.
        notes: What else must be said, such as a baseline that is missing.

    Raises:
        DataError: the disk is full.
    """

    name = "tokenizers"
    protocol = TOKENIZER_PROTOCOL

    def __init__(
        self,
        config: EvalConfig,
        choice: ClipChoice,
        systems: Sequence[System],
        *,
        languages: frozenset[str] | None,
        notes: Sequence[str] = (),
    ) -> None:
        self.metrics = tuple(config.metrics) or TOKENIZER_METRICS
        self.facts = {"clips": choice.description} | {system.family: system.revision for system in systems}
        self._rows = [(system, variant) for system in systems for variant in system.variants]
        self._extra_notes = [*choice.notes, *notes]
        folder = config.output / "reconstructions"
        originals = write_originals(choice.utterances, folder)
        made: dict[tuple[str, str], Reconstruction] = {}
        for system in systems:
            made |= reconstruct(system, originals, folder)
        variants = [variant for _, variant in self._rows]
        self.items = tokenizer_items(originals, variants, made, self.metrics, languages)
        self._without_wer = [u for u in choice.utterances if not _has_wer(u, languages)]
        self.ranked_system = systems[0].variants[-1].system
        self.shown_systems: Sequence[str] = [ORIGINAL, *_shown(systems)]

    def rows(self, records: Sequence[Record], bootstrap: BootstrapConfig) -> list[SummaryRow]:
        """The original audio (WER only), then every system in every setting."""
        rows = []
        if any(item.system == ORIGINAL for item in self.items):
            rows.append(make_row(ORIGINAL, records, self.metrics, bootstrap, system=ORIGINAL))
        for system, variant in self._rows:
            row = make_row(
                variant.label,
                records,
                self.metrics,
                bootstrap,
                system=variant.system,
                codebooks=variant.num_codebooks,
                bits_per_s=variant.bits_per_s,
                family=system.family,
            )
            rows.append(row)
        return rows

    def group_rows(self, records: Sequence[Record], bootstrap: BootstrapConfig) -> list[SummaryRow]:
        """None: one choice of clips is scored at a time."""
        return []

    def notes(self) -> list[str]:
        """What was scored, against what, and how the numbers are defined."""
        notes = [
            f"Clips: {self.facts['clips']}.",
            "Every system hears a clip at its own rate; all are scored at 16 kHz against the same 16-bit original, "
            "aligned at the head, so that a band that a system does not carry counts against it.",
            *(text for metric, text in _DEFINITIONS.items() if metric in self.metrics),
        ]
        if Metric.RTF in self.metrics:
            notes.append(_timing_note(self.items))
        if Metric.WER in self.metrics and self._without_wer:
            found = ", ".join(sorted({utterance.language or "unknown" for utterance in self._without_wer}))
            notes.append(
                f"{len(self._without_wer)} clips (language {found}) have no WER: they have no text, or the recogniser "
                "does not know their language."
            )
        return notes + self._extra_notes

    def charts(self, rows: Sequence[SummaryRow], labels: dict[Metric, str]) -> list[ChartGroup]:
        """Each metric over the bit rate, with intervals, beside published rows where they are defined alike."""
        charts = bitrate_charts(rows, labels, published_tokenizers())
        return [(CHART_GROUP, charts)] if charts else []

    def write_files(self, folder: Path, summary: Summary) -> None:
        """table.md and curves.png."""
        write_markdown(folder / "table.md", summary, self.facts)
        charts = bitrate_charts(summary.rows, summary.labels, published_tokenizers())
        if charts:
            write_curves(folder / "curves.png", charts, published_tokenizers())


def tokenizer_items(
    originals: Sequence[Original],
    variants: Sequence[Variant],
    made: dict[tuple[str, str], Reconstruction],
    metrics: Sequence[Metric],
    languages: frozenset[str] | None,
) -> list[Item]:
    """The original (WER only) and every setting of every system, for every utterance.

    Args:
        originals: One per utterance.
        variants: Settings of all systems.
        made: What each made of each utterance.
        metrics: What is measured.
        languages: Languages that the recogniser knows, None for any; the others have no WER.
    """
    items = []
    for variant in (None, *variants):
        for original in originals:
            utterance = original.utterance
            clip = Reconstruction(wav=original.reference) if variant is None else made[variant.system, utterance.id]
            if original.failure is not None:
                clip = Reconstruction(failure=original.failure)
            heard = _has_wer(utterance, languages)
            wanted = [metric for metric in metrics if metric is not Metric.WER or heard]
            if variant is None:
                wanted = [metric for metric in wanted if metric is Metric.WER]
            item = Item(
                system=ORIGINAL if variant is None else variant.system,
                group=utterance.split,
                utterance=utterance.id,
                text=utterance.text,
                language=utterance.language,
                metrics=tuple(wanted),
                wav=clip.wav,
                failure=clip.failure,
                prompt=original.reference,
                prompt_kind="original",
                target=original.reference,
                processing_s=clip.processing_s,
                timed_on=clip.timed_on,
            )
            items.append(item)
    return [item for item in items if item.metrics]


def _has_wer(utterance: Utterance, languages: frozenset[str] | None) -> bool:
    known = languages is None or utterance.language in languages
    return known and num_tokens(utterance.text, utterance.language) > 0


def _shown(systems: Sequence[System]) -> list[str]:
    """Systems with players: tokenizers at half and at all codebooks, of each codec the nearest to the first system."""
    rate = systems[0].variants[-1].bits_per_s or 0.0
    shown = []
    for system in systems:
        if isinstance(system, TokenizerSystem):
            variants = [system.variants[len(system.variants) // 2], system.variants[-1]]
        else:
            variants = [min(system.variants, key=lambda variant: abs((variant.bits_per_s or 0.0) - rate))]
        shown += [variant.system for variant in variants]
    return list(dict.fromkeys(shown))


def _timing_note(items: Sequence[Item]) -> str:
    places = sorted({item.timed_on for item in items if item.timed_on})
    return (
        f"{METRICS[Metric.RTF].label} is the time of encoding and decoding over that of the audio, one clip at a time, "
        f"on {' and '.join(places) or 'nothing, since no clip was made'}; a tokenizer always encodes all codebooks. It "
        "has no worst value: its mean is over the clips that were made."
    )
