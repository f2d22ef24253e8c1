"""Settings of `evaluate.py`: what is scored, by which metrics, and what a missing clip means."""

import dataclasses
import enum
from pathlib import Path

from moss.config.schema import section
from moss.config.tokenizer import TokenizerConfig


class BenchmarkName(enum.StrEnum):
    """What is scored."""

    GENERATIONS = "generations"
    """A folder with `generations.jsonl`, against its target clips."""
    TOKENIZER = "tokenizer"
    """An audio tokenizer on held-out clips, at several codebook counts."""


class Metric(enum.StrEnum):
    """What is measured on each clip."""

    WER = "wer"
    SIM = "sim"
    DURATION_ERROR = "duration_error"
    PESQ_NB_16K = "pesq_nb_16k"
    PESQ_WB = "pesq_wb"
    STOI = "stoi"
    ESTOI = "estoi"


class MissingPolicy(enum.StrEnum):
    """What a missing or failed clip does. It is never left out of a mean."""

    COUNT_AS_ERROR = "count_as_error"
    """It scores the metric's worst value and is shown."""
    FAIL = "fail"
    """The same, and the run ends with an error after everything was written."""


GENERATION_METRICS = (Metric.WER, Metric.SIM, Metric.DURATION_ERROR)
TOKENIZER_METRICS = (Metric.PESQ_NB_16K, Metric.PESQ_WB, Metric.STOI, Metric.ESTOI, Metric.WER)


@section
class AsrConfig:
    """The recogniser behind WER."""

    beam_size: int = 1
    """1 is greedy."""
    workers: int | None = None
    """Clips recognised at the same time. Null: one per core, at most 4. Scores do not depend on it."""

    def validate(self) -> list[str]:
        """At least one beam and one worker."""
        problems = []
        if self.beam_size < 1:
            problems.append(f"beam_size: expected at least 1, got {self.beam_size}")
        if self.workers is not None and self.workers < 1:
            problems.append(f"workers: expected at least 1, got {self.workers}")
        return problems


@section
class BootstrapConfig:
    """Percentile bootstrap over utterances."""

    resamples: int = 10_000
    confidence_frac: float = 0.95
    seed: int = 0

    def validate(self) -> list[str]:
        """Enough resamples for the quantiles; a confidence strictly between 0 and 1."""
        problems = []
        if self.resamples < 100:
            problems.append(f"resamples: expected at least 100, got {self.resamples}")
        if not 0 < self.confidence_frac < 1:
            problems.append(f"confidence_frac: expected a value between 0 and 1, got {self.confidence_frac}")
        return problems


@section
class ReportConfig:
    """The HTML report."""

    audio_utterances: int = 24
    """Utterances with players and spectrograms, worst first; the others keep their text. 0: no audio."""

    def validate(self) -> list[str]:
        """A count."""
        return (
            [] if self.audio_utterances >= 0 else [f"audio_utterances: expected 0 or more, got {self.audio_utterances}"]
        )


@section
class EvalConfig:
    """One scoring run."""

    output: Path
    """Folder of scores.jsonl, scores.parquet, summary.json and report.html. A second run continues in it."""
    benchmark: BenchmarkName = BenchmarkName.GENERATIONS
    generations: Path | None = None
    """Folder with generations.jsonl (benchmark=generations)."""
    reconstruction: Path | None = None
    """Folder of `<request_id>.wav`, for rows without a `reconstruction` field of their own."""
    training_run: Path | None = None
    """Folder of the training run, for the loss curves of the report."""
    manifest: Path | None = None
    """utterances.jsonl (benchmark=tokenizer)."""
    split: str = "heldout"
    """Which utterances of the manifest are scored; an empty text takes all."""
    tokenizer: TokenizerConfig | None = None
    codebooks: list[int] = dataclasses.field(default_factory=list)
    """Codebook counts to score. Empty: 1, 2, 4, 8, ... and all of them."""
    max_utterances: int | None = None
    """Score a random part of the manifest, drawn by `bootstrap.seed`. Null: all."""
    metrics: list[Metric] = dataclasses.field(default_factory=list)
    """Empty: those of the benchmark."""
    missing: MissingPolicy = MissingPolicy.COUNT_AS_ERROR
    allow_invalid: bool = False
    """Accept utterances whose text is empty after normalisation; they are excluded from WER and counted."""
    asr: AsrConfig = dataclasses.field(default_factory=AsrConfig)
    bootstrap: BootstrapConfig = dataclasses.field(default_factory=BootstrapConfig)
    report: ReportConfig = dataclasses.field(default_factory=ReportConfig)

    def validate(self) -> list[str]:
        """What each benchmark needs."""
        problems = []
        needed = ("generations",) if self.benchmark is BenchmarkName.GENERATIONS else ("manifest", "tokenizer")
        for name in needed:
            if getattr(self, name) is None:
                problems.append(f"{name}: benchmark={self.benchmark.value} needs it, but it is not set")
        if any(count < 1 for count in self.codebooks):
            problems.append(f"codebooks: expected counts of at least 1, got {self.codebooks}")
        if self.max_utterances is not None and self.max_utterances < 1:
            problems.append(f"max_utterances: expected at least 1, got {self.max_utterances}")
        allowed = GENERATION_METRICS if self.benchmark is BenchmarkName.GENERATIONS else TOKENIZER_METRICS
        for metric in self.metrics:
            if metric not in allowed:
                words = ", ".join(name.value for name in allowed)
                problems.append(f"metrics: benchmark={self.benchmark.value} has {words}; got {metric.value!r}")
        return problems
