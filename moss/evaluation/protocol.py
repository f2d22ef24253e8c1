"""What each metric is called, which way is better, and what a failed clip scores; the name of the scoring protocol.

Numbers under different protocol names are not comparable and never stand in one column.
"""

from dataclasses import dataclass

from moss.config.evaluation import Metric
from moss.evaluation.metrics.signal import PESQ_FLOOR, STOI_FLOOR
from moss.evaluation.metrics.spectral import MEL_SILENCE, STFT_SILENCE

PROTOCOL = "embedded-v1"
"""Generations: Seed-TTS normaliser and macro WER; Whisper tiny.en; GE2E similarity with a clip of the wanted voice."""

TOKENIZER_PROTOCOL = "tokenizer-v2"
"""Reconstructions: the same recogniser, normaliser and speaker encoder; every system is scored at 16 kHz, head-aligned,
against the same 16-bit original at 16 kHz, SIM with that original. Under v1 the original had the rate of the system."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricFacts:
    """How a metric is shown and aggregated."""

    label: str
    floor: float | None
    """What a missing or failed clip scores: the value of having said nothing. None: there is no worst value, and the
    mean is over the clips that could be measured, with their number beside it."""
    higher_is_better: bool
    percent: bool
    """Shown times 100."""


METRICS: dict[Metric, MetricFacts] = {
    Metric.WER: MetricFacts(label="WER", floor=1.0, higher_is_better=False, percent=True),
    Metric.SIM: MetricFacts(label="SIM", floor=0.0, higher_is_better=True, percent=False),
    Metric.DURATION_ERROR: MetricFacts(label="duration error", floor=1.0, higher_is_better=False, percent=True),
    Metric.PESQ_NB_16K: MetricFacts(label="PESQ-NB@16k", floor=PESQ_FLOOR, higher_is_better=True, percent=False),
    Metric.PESQ_WB: MetricFacts(label="PESQ-WB", floor=PESQ_FLOOR, higher_is_better=True, percent=False),
    Metric.STOI: MetricFacts(label="STOI", floor=STOI_FLOOR, higher_is_better=True, percent=False),
    Metric.ESTOI: MetricFacts(label="ESTOI", floor=STOI_FLOOR, higher_is_better=True, percent=False),
    Metric.PESQ_NB_8K: MetricFacts(label="PESQ-NB@8k", floor=PESQ_FLOOR, higher_is_better=True, percent=False),
    Metric.MEL_DISTANCE: MetricFacts(
        label="mel distance@16k", floor=MEL_SILENCE, higher_is_better=False, percent=False
    ),
    Metric.STFT_DISTANCE: MetricFacts(
        label="STFT distance@16k", floor=STFT_SILENCE, higher_is_better=False, percent=False
    ),
    Metric.RTF: MetricFacts(label="RTF", floor=None, higher_is_better=False, percent=False),
}
