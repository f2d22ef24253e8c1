"""Settings of training the audio tokenizer (`task=tokenizer`)."""

import dataclasses
import itertools
from enum import StrEnum
from pathlib import Path

from moss.config.model import TextTokenizerConfig
from moss.config.schema import below_one, section


class SemanticScaling(StrEnum):
    """How `SemanticConfig.weight` is meant."""

    constant = "constant"
    """A factor of the loss; the published recipe's is 20, tuned for a language model of half a billion values."""
    gradient_norm = "gradient_norm"
    """The gradient of the semantic loss at the quantizer's output is scaled to `weight` times the norm of that of the
    reconstruction losses: weights then mean the same at every size of language model."""


@section
class SemanticConfig:
    """The audio-to-text loss: a causal language model that reads quantizer outputs and predicts the transcript.

    What the report leaves open and is decided here: the language model starts from nothing, reads the same quantized
    states as the decoder (codebook dropout included), and one task tag stands before the audio.
    """

    weight: float = 0.0
    """0 turns the loss off. See `scaling`."""
    scaling: SemanticScaling = SemanticScaling.gradient_norm
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    intermediate_size: int = 1024
    max_text_tokens: int = 256
    """Longer transcripts train everything but this loss."""
    whole_clips_only: bool = True
    """A segment that is cut out of a longer clip has no transcript of its own."""
    text_tokenizer: TextTokenizerConfig = TextTokenizerConfig()

    def validate(self) -> list[str]:
        """Positive sizes, heads that divide the width."""
        names = ("hidden_size", "num_layers", "num_heads", "intermediate_size", "max_text_tokens")
        problems = below_one(self, names)
        if self.weight < 0:
            problems.append(f"weight: must be 0 (off) or more, got {self.weight}")
        if not problems and (self.hidden_size % self.num_heads or self.hidden_size // self.num_heads % 2):
            problems.append(
                f"num_heads: hidden_size {self.hidden_size} must divide into {self.num_heads} heads of even width"
            )
        return problems


@section
class DiscriminatorConfig:
    """Multi-period and complex-STFT discriminators, and when they join in."""

    from_step: int | None = None
    """First step of the adversarial stage; null: never (one stage)."""
    segments_per_step: int | None = None
    """Segments of a step in the adversarial stage. Null: as before (the report halves them)."""
    periods: list[int] = dataclasses.field(default_factory=lambda: [2, 3, 5, 7, 11])
    period_channels: list[int] = dataclasses.field(default_factory=lambda: [32, 128, 512, 1024, 1024])
    stft_windows: list[int] = dataclasses.field(default_factory=lambda: [2048, 1024, 512])
    stft_bands: list[float] = dataclasses.field(default_factory=lambda: [0.0, 0.1, 0.25, 0.5, 0.75, 1.0])
    """Edges of the frequency bands, each with convolutions of its own, as shares of half the sampling rate."""
    stft_channels: int = 32
    lr: float = 1e-4
    max_grad_norm: float = 10.0
    warmup_steps: int = 0
    """Steps in which only the discriminators learn before the generator hears of them."""

    def validate(self) -> list[str]:
        """Positive sizes, ascending bands."""
        problems = [
            f"{name}: every entry must be at least 1, got {getattr(self, name)}"
            for name in ("periods", "period_channels", "stft_windows")
            if any(entry < 1 for entry in getattr(self, name))
        ]
        problems += [
            f"{name}: must be positive, got {getattr(self, name)}"
            for name in ("stft_channels", "lr", "max_grad_norm")
            if getattr(self, name) <= 0
        ]
        if self.from_step is not None and self.from_step < 0:
            problems.append(f"from_step: must be 0 or more, or null, got {self.from_step}")
        if self.segments_per_step is not None and self.segments_per_step < 1:
            problems.append(f"segments_per_step: must be at least 1, got {self.segments_per_step}")
        if self.warmup_steps < 0:
            problems.append(f"warmup_steps: must be 0 or more, got {self.warmup_steps}")
        if self.from_step is None and self.segments_per_step is not None:
            problems.append("segments_per_step: is given without from_step; there is no second stage")
        if not self.periods and not self.stft_windows:
            problems.append("periods: and stft_windows are both empty; name at least one discriminator")
        if self.periods and not self.period_channels:
            problems.append("period_channels: is empty; name the width of each convolution")
        bands = self.stft_bands
        if self.stft_windows and (
            len(bands) < 2 or bands[0] != 0 or bands[-1] != 1 or any(a >= b for a, b in itertools.pairwise(bands))
        ):
            problems.append(f"stft_bands: expected ascending edges from 0.0 to 1.0, got {bands}")
        return problems


@section
class TokenizerTrainingConfig:
    """From a manifest of audio to a trained Cat. Loss weights and dropout default to the published recipe's."""

    manifest: Path | None = None
    """utterances.jsonl written by data_prep/01_manifest.py; clips of split `train` are trained on, those of `heldout`
    are scored. Rows without a text train everything but the semantic loss."""
    more_manifests: list[Path] = dataclasses.field(default_factory=list)
    """Further utterances.jsonl, joined to the first; their audio paths are relative to each file's own folder."""
    source_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    """Share of the segments by the `source` of the manifest's rows, relative to each other; sources that are not named
    are left out. Empty: every second of audio is equally likely."""
    init_from: Path | None = None
    """Start from the weights of this checkpoint folder or safetensors file; its shapes must be the tokenizer's."""
    segment_s: float = 3.84
    """Length of the random segments in seconds; rounded down to whole frames."""
    segments_per_step: int = 8
    """Over all processes."""
    gain_db: float = 0.0
    """Segments are made louder or softer by a random gain of up to so many decibels."""
    mel_weight: float = 15.0
    mel_floor: float = 1e-5
    """Mel magnitudes below it count as silence."""
    waveform_weight: float = 0.0
    """Relative L1 distance of the samples themselves; not part of the report. It gives the phase a target, which the
    mel distance leaves open, and shortens the first hours."""
    waveform_end_weight: float | None = None
    """Where `waveform_weight` moves to, in a straight line over schedule.max_steps; null: it stays."""
    mid_side_weight: float = 0.0
    """Stereo only: the mel distance of (left + right) / 2 and (left - right) / 2, against channels of opposite sign."""
    commitment_weight: float = 0.25
    codebook_weight: float = 1.0
    adversarial_weight: float = 1.0
    feature_weight: float = 2.0
    codebook_dropout_prob: float = 1.0
    """Share of segments that train with a random number of codebooks instead of all."""
    bypass_steps: int = 0
    """First so many steps train encoder and decoder without codes in between."""
    init_frames: int = 0
    """Frames that the codebooks are fitted to when the bypass ends; 0 keeps their random start."""
    replace_every_steps: int = 0
    """How often codes that are hardly used move to where the data is; 0 is never."""
    replace_below_uses: int = 2
    """Codes with fewer uses since the last replacement are moved."""
    replace_until_frac: float = 1.0
    """No replacements after this share of schedule.max_steps."""
    ema_decay: float = 0.0
    """Decay per step of the moving average of the weights that is exported and scored; 0 is no average."""
    audio_every_s: float = 300.0
    """Seconds of training between two sets of held-out reconstructions, to listen to; 0 is never."""
    audio_clips: int = 3
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    semantic: SemanticConfig = SemanticConfig()
    max_wall_s: float | None = None
    """Stop, save and score after so long, even before schedule.max_steps; the next start goes on."""
    cache_bytes: int = 2_000_000_000
    """Decoded audio kept in memory, at two bytes a sample."""

    def segments_at(self, step: int) -> int:
        """Segments of a step, over all processes."""
        adversarial = self.discriminator.segments_per_step
        return adversarial if adversarial is not None and self.is_adversarial(step) else self.segments_per_step

    def waveform_weight_at(self, step: int, max_steps: int) -> float:
        """Weight of the waveform distance in a step of a run of so many."""
        end = self.waveform_weight if self.waveform_end_weight is None else self.waveform_end_weight
        return self.waveform_weight + (end - self.waveform_weight) * min(1.0, step / max_steps)

    def is_adversarial(self, step: int) -> bool:
        """Whether the discriminators learn in a step."""
        first = self.discriminator.from_step
        return first is not None and step >= first

    def validate(self) -> list[str]:
        """Ranges."""
        problems = [
            f"{name}: must be positive, got {getattr(self, name)}"
            for name in ("segment_s", "segments_per_step", "mel_floor")
            if getattr(self, name) <= 0
        ]
        at_least_zero = ["mel_weight", "waveform_weight", "mid_side_weight", "commitment_weight", "codebook_weight"]
        at_least_zero += ["adversarial_weight", "feature_weight", "bypass_steps", "init_frames", "gain_db"]
        at_least_zero += ["replace_every_steps", "replace_below_uses", "cache_bytes", "audio_every_s", "audio_clips"]
        problems += [
            f"{name}: must be 0 or more, got {getattr(self, name)}" for name in at_least_zero if getattr(self, name) < 0
        ]
        for name in ("codebook_dropout_prob", "replace_until_frac"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"{name}: must be in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            problems.append(f"ema_decay: must be in [0, 1), got {self.ema_decay}")
        if self.max_wall_s is not None and self.max_wall_s <= 0:
            problems.append(f"max_wall_s: must be positive, got {self.max_wall_s}")
        for source, weight in self.source_weights.items():
            if weight <= 0:
                problems.append(f"source_weights: {source!r}: must be positive, got {weight}; leave the source out")
        if self.waveform_end_weight is not None and self.waveform_end_weight < 0:
            problems.append(f"waveform_end_weight: must be 0 or more, got {self.waveform_end_weight}")
        if self.manifest is None and self.more_manifests:
            problems.append("more_manifests: is given without manifest; name the first one there")
        return problems
