"""What each metric is called, which way is better, and what a failed clip scores; the name of the scoring protocol.

Numbers under different protocol names are not comparable and never stand in one column.
"""

from dataclasses import dataclass

from moss.config.evaluation import Metric
from moss.evaluation.metrics.signal import PESQ_FLOOR, STOI_FLOOR

PROTOCOL = "embedded-v1"
"""Seed-TTS normaliser and macro WER; Whisper tiny.en; GE2E similarity; PESQ and STOI at 16 kHz, head-aligned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricFacts:
    """How a metric is shown and aggregated."""

    label: str
    floor: float
    """What a missing or failed clip scores: the value of having said nothing."""
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
}
