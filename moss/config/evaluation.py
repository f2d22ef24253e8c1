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
    """Audio tokenizers at several codebook counts, beside other codecs, on the same held-out clips."""


class Metric(enum.StrEnum):
    """What is measured on each clip."""

    WER = "wer"
    SIM = "sim"
    DURATION_ERROR = "duration_error"
    PESQ_NB_16K = "pesq_nb_16k"
    PESQ_NB_8K = "pesq_nb_8k"
    PESQ_WB = "pesq_wb"
    STOI = "stoi"
    ESTOI = "estoi"
    MEL_DISTANCE = "mel_distance"
    STFT_DISTANCE = "stft_distance"
    RTF = "rtf"
    """Seconds of encoding and decoding for a second of audio."""


class MissingPolicy(enum.StrEnum):
    """What a missing or failed clip does. It is never left out of a mean."""

    COUNT_AS_ERROR = "count_as_error"
    """It scores the metric's worst value and is shown."""
    FAIL = "fail"
    """The same, and the run ends with an error after everything was written."""


class Baseline(enum.StrEnum):
    """A codec that is no tokenizer of ours, for comparison."""

    OPUS = "opus"
    CODEC2 = "codec2"
    MEL_GRIFFIN_LIM = "mel_griffin_lim"
    """Mel frames and Griffin-Lim without any quantization: what bounds `mel_rvq`."""


class DatasetKind(enum.StrEnum):
    """How a folder of recordings with texts is laid out."""

    LIBRISPEECH = "librispeech"
    AISHELL = "aishell"
    FOLDER = "folder"


GENERATION_METRICS = (Metric.WER, Metric.SIM, Metric.DURATION_ERROR)
TOKENIZER_METRICS = (
    Metric.PESQ_NB_16K,
    Metric.PESQ_NB_8K,
    Metric.PESQ_WB,
    Metric.STOI,
    Metric.ESTOI,
    Metric.SIM,
    Metric.MEL_DISTANCE,
    Metric.STFT_DISTANCE,
    Metric.WER,
    Metric.RTF,
)

DEFAULT_CODEBOOKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
DEFAULT_TOKENIZERS = ("cat_embedded", "mel_rvq")
EMBEDDED_LANGUAGE = "en"
EMBEDDED_MIN_DURATION_S = 1.5


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


OPUS_BITS_PER_S = (6000, 256_000)
"""From what libopus is made for to what it takes for one channel."""
CODEC2_MODES = ("3200", "2400", "1600", "1400", "1300", "1200", "700C")
"""Bits per second, as Codec 2 names its modes."""


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
    """Folder of scores.jsonl, scores.parquet, summary.json and report.html; for tokenizers also table.md and
    curves.png. A second run continues in it."""
    benchmark: BenchmarkName = BenchmarkName.GENERATIONS
    generations: Path | None = None
    """Folder with generations.jsonl (benchmark=generations)."""
    reconstruction: Path | None = None
    """Folder of `<request_id>.wav`, for rows without a `reconstruction` field of their own."""
    training_run: Path | None = None
    """Folder of the training run, for the loss curves of the report."""
    manifest: Path | None = None
    """utterances.jsonl (benchmark=tokenizer). Null: the embedded corpus in data/speech, fetched on first use."""
    split: str | None = None
    """Which part is scored. Null: "heldout" of a manifest, the usual test part of a dataset. An empty text takes the
    whole manifest."""
    dataset: DatasetKind | None = None
    """Read `data_dir` in this layout instead of a manifest."""
    data_dir: Path | None = None
    """The unpacked dataset, such as LibriSpeech/test-clean."""
    language: str | None = None
    """Score clips of this language only. Null: English of the embedded corpus, all of any other."""
    min_duration_s: float | None = None
    """Leave out shorter clips. Null: 1.5 for the embedded corpus, whose shorter clips are single words that a
    recogniser spells in its own way whatever their sound; 0 for any other."""
    max_utterances: int | None = None
    """Score a random part of the clips, drawn by `bootstrap.seed`. Null: all."""
    tokenizer: TokenizerConfig | None = None
    """One more tokenizer, by the group `tokenizer=<name>` and its settings; it comes first in the table."""
    tokenizers: list[str] = dataclasses.field(default_factory=lambda: list(DEFAULT_TOKENIZERS))
    """Names in configs/tokenizer, .yaml files or folders of published checkpoints. A tokenizer named twice is scored
    once."""
    codebooks: list[int] = dataclasses.field(default_factory=list)
    """Codebook counts to score, as far as a tokenizer has them. Empty: 1, 2, 3, 4, 6, 8, 12, 16, 24, 32 and all."""
    baselines: list[Baseline] = dataclasses.field(default_factory=lambda: list(Baseline))
    """Codecs beside the tokenizers."""
    opus_bits_per_s: list[int] = dataclasses.field(default_factory=lambda: [6000, 8000, 12000])
    """Bit rates of Opus; its lowest one is 6000."""
    codec2_modes: list[str] = dataclasses.field(default_factory=lambda: ["700C", "1200", "2400"])
    """Modes of Codec2, named by their bit rates."""
    device: str | None = None
    """Where tokenizers run, such as "cpu" or "cuda:0". Null: a GPU where there is one."""
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
        is_generations = self.benchmark is BenchmarkName.GENERATIONS
        problems = [] if is_generations else self._tokenizer_problems()
        if is_generations and self.generations is None:
            problems.append("generations: benchmark=generations needs it, but it is not set")
        if any(count < 1 for count in self.codebooks):
            problems.append(f"codebooks: expected counts of at least 1, got {self.codebooks}")
        if self.max_utterances is not None and self.max_utterances < 1:
            problems.append(f"max_utterances: expected at least 1, got {self.max_utterances}")
        if self.min_duration_s is not None and self.min_duration_s < 0:
            problems.append(f"min_duration_s: expected 0 or more, got {self.min_duration_s}")
        allowed = GENERATION_METRICS if is_generations else TOKENIZER_METRICS
        for metric in self.metrics:
            if metric not in allowed:
                words = ", ".join(name.value for name in allowed)
                problems.append(f"metrics: benchmark={self.benchmark.value} has {words}; got {metric.value!r}")
        return problems

    def _tokenizer_problems(self) -> list[str]:
        problems = []
        if self.dataset is not None and self.data_dir is None:
            problems.append(f"data_dir: dataset={self.dataset.value} needs the folder to read, but it is not set")
        if self.dataset is None and self.data_dir is not None:
            words = ", ".join(kind.value for kind in DatasetKind)
            problems.append(f"dataset: data_dir needs its layout, one of {words}, but it is not set")
        if self.dataset is not None and self.manifest is not None:
            problems.append("manifest: is another source of clips than dataset; set one of them")
        if self.tokenizer is None and not self.tokenizers and not self.baselines:
            problems.append("tokenizers: nothing to score; name a tokenizer or a baseline")
        for baseline, name in ((Baseline.OPUS, "opus_bits_per_s"), (Baseline.CODEC2, "codec2_modes")):
            if baseline in self.baselines and not getattr(self, name):
                problems.append(f"{name}: names no setting; name one, or leave {baseline.value!r} out of baselines")
        for name in ("baselines", "opus_bits_per_s", "codec2_modes"):
            listed = [getattr(entry, "value", entry) for entry in getattr(self, name)]
            twice = [entry for entry in dict.fromkeys(listed) if listed.count(entry) > 1]
            problems += [f"{name}: {entry!r} is listed twice; list it once" for entry in twice]
        low, high = OPUS_BITS_PER_S
        problems += [
            f"opus_bits_per_s: {rate} is outside {low} to {high} bits per second"
            for rate in self.opus_bits_per_s
            if not low <= rate <= high
        ]
        problems += [
            f"codec2_modes: {mode!r} is none of {', '.join(CODEC2_MODES)}"
            for mode in self.codec2_modes
            if mode not in CODEC2_MODES
        ]
        return problems
