"""Settings of the audio tokenizers: which one, its geometry, and where its weights are."""

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from moss.config.schema import section
from moss.spec import TokenizerSpec


@section
class TokenizerConfig:
    """An audio tokenizer."""

    discriminator: ClassVar[str] = "kind"
    variants: ClassVar[dict[str, type]] = {}

    kind: str
    weights: Path | None = None
    """Weights (safetensors file, or folder of a published checkpoint). Null: the shipped ones, where there are any."""


@section
class MelRvqConfig(TokenizerConfig):
    """Residual quantisation of mel frames with Griffin-Lim synthesis; ships with fitted weights."""

    kind: str = "mel_rvq"
    griffin_lim_iterations: int = 32
    """More sound slightly better and take longer; codes do not depend on it."""

    def validate(self) -> list[str]:
        """At least one iteration."""
        return _at_least_one(griffin_lim_iterations=self.griffin_lim_iterations)


class Part(StrEnum):
    """Which half of a tokenizer is built and loaded; the quantizer belongs to both."""

    full = "full"
    encoder = "encoder"
    """Encodes only: half the memory, for preparing data."""
    decoder = "decoder"
    """Decodes only: half the memory, for generation without reference clips."""


class ComputeDtype(StrEnum):
    """Arithmetic of the transformers on a GPU; the quantizer, and everything on a CPU, is float32."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class BatchPolicy(StrEnum):
    """How waveforms of several items share a forward pass."""

    single = "single"
    """One at a time: padding and batch size can then not change a code, on any device."""
    bucketed = "bucketed"
    """Items of similar length together, zero-padded on the right, in buckets of bounded work."""


@section
class CatStage:
    """One entry of a Cat encoder or decoder, in execution order."""

    discriminator: ClassVar[str] = "kind"
    variants: ClassVar[dict[str, type]] = {}

    kind: str


@section
class PatchStage(CatStage):
    """Fold `patch_size` time steps into features (encoder), or unfold them again (decoder). Has no weights."""

    patch_size: int
    kind: str = "patch"

    def validate(self) -> list[str]:
        """A patch holds at least one step."""
        return _at_least_one(patch_size=self.patch_size)


@section
class TransformerStage(CatStage):
    """A stack of causal sliding-window transformer blocks at one frame rate."""

    input_size: int
    output_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    kind: str = "transformer"
    context_s: float = 10.0
    """How far a position sees back, in seconds of audio; the number of positions is floored."""
    rope_theta: float = 10_000.0
    layer_scale_init: float = 0.01
    always_project: bool = False
    """Input and output projections even where the widths agree, as the 48 kHz checkpoints have them."""

    @property
    def has_input_projection(self) -> bool:
        """Whether a linear map stands before the blocks."""
        return self.always_project or self.input_size != self.hidden_size

    @property
    def has_output_projection(self) -> bool:
        """Whether a linear map stands behind the blocks."""
        return self.always_project or self.output_size != self.hidden_size

    def validate(self) -> list[str]:
        """Positive sizes, and heads that divide the width evenly for rotary pairs."""
        problems = _at_least_one(
            input_size=self.input_size,
            output_size=self.output_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            intermediate_size=self.intermediate_size,
        )
        if not problems and (self.hidden_size % self.num_heads or self.hidden_size // self.num_heads % 2):
            problems.append(
                f"num_heads: hidden_size {self.hidden_size} must divide into {self.num_heads} heads of even width"
            )
        if self.context_s <= 0:
            problems.append(f"context_s: expected more than 0 s, got {self.context_s}")
        return problems


@section
class QuantizerConfig:
    """The residual quantizer: cosine-matched codebooks in a small space."""

    input_size: int = 768
    residual_size: int = 512
    output_size: int = 768
    num_codebooks: int = 32
    codebook_size: int = 1024
    code_size: int = 8
    """Width of one codebook vector."""

    def validate(self) -> list[str]:
        """Positive sizes."""
        return _at_least_one(
            input_size=self.input_size,
            residual_size=self.residual_size,
            output_size=self.output_size,
            num_codebooks=self.num_codebooks,
            codebook_size=self.codebook_size,
            code_size=self.code_size,
        )


def _published_stage(input_size: int, output_size: int, hidden_size: int, num_layers: int) -> TransformerStage:
    return TransformerStage(
        input_size=input_size,
        output_size=output_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=hidden_size // 64,
        intermediate_size=4 * hidden_size,
    )


def _published_encoder() -> list[CatStage]:
    return [
        PatchStage(patch_size=240),
        _published_stage(240, 384, 768, 12),
        PatchStage(patch_size=2),
        _published_stage(768, 384, 768, 12),
        PatchStage(patch_size=2),
        _published_stage(768, 640, 768, 12),
        PatchStage(patch_size=2),
        _published_stage(1280, 768, 1280, 32),
    ]


@section
class CatConfig(TokenizerConfig):
    """The Cat tokenizer: transformers on patches of waveform around a residual quantizer.

    The defaults are the published 24 kHz mono checkpoint (1,774,566,400 values).
    Source: MOSS-Audio-Tokenizer config.json @56df9ee.
    """

    kind: str = "cat"
    sampling_rate_hz: int = 24_000
    samples_per_frame: int = 1920
    """Samples per channel."""
    num_audio_channels: int = 1
    """2: the channels are interleaved sample by sample into one stream of twice the rate, as the 48 kHz checkpoints do;
    the patches then multiply to twice `samples_per_frame`."""
    shipped: str | None = None
    """Name of weights that come with the package, used where `weights` is null."""
    part: Part = Part.full
    compute_dtype: ComputeDtype = ComputeDtype.fp32
    batch_policy: BatchPolicy = BatchPolicy.single
    encoder: list[CatStage] = dataclasses.field(default_factory=_published_encoder)
    decoder: list[CatStage] | None = None
    """Null: the mirrored encoder (stages reversed, input and output widths swapped)."""
    quantizer: QuantizerConfig = QuantizerConfig()
    unverified: list[str] = dataclasses.field(default_factory=list)
    """Fields of a published preset whose value nobody has checked against the published config.json."""

    def spec(self) -> TokenizerSpec:
        """Rates and code sizes."""
        return TokenizerSpec(
            sampling_rate_hz=self.sampling_rate_hz,
            samples_per_frame=self.samples_per_frame,
            num_codebooks=self.quantizer.num_codebooks,
            codebook_size=self.quantizer.codebook_size,
            num_audio_channels=self.num_audio_channels,
        )

    @property
    def positions_per_s(self) -> float:
        """Rate of the interleaved stream that the first encoder stage sees."""
        return float(self.sampling_rate_hz * self.num_audio_channels)

    def geometry(self) -> dict[str, Any]:
        """What makes it this network, by dotted name: equal for equal networks, however their settings are written.

        Where the weights are, which half is built and how they are computed is no part of it, nor is what only counts
        before training.
        """
        flat: dict[str, Any] = {
            "sampling_rate_hz": self.sampling_rate_hz,
            "samples_per_frame": self.samples_per_frame,
            "num_audio_channels": self.num_audio_channels,
        }
        for side, stages in (("encoder", self.encoder), ("decoder", self.decoder_stages())):
            for i, stage in enumerate(stages):
                flat |= {f"{side}[{i}].{name}": value for name, value in _stage_geometry(stage).items()}
        names = [field.name for field in dataclasses.fields(self.quantizer)]
        return flat | {f"quantizer.{name}": getattr(self.quantizer, name) for name in names}

    def decoder_stages(self) -> list[CatStage]:
        """The decoder in execution order, mirrored from the encoder where the settings leave it open."""
        if self.decoder is not None:
            return self.decoder
        return [
            dataclasses.replace(stage, input_size=stage.output_size, output_size=stage.input_size)
            if isinstance(stage, TransformerStage)
            else stage
            for stage in reversed(self.encoder)
        ]

    def validate(self) -> list[str]:
        """Both stacks must chain: widths meet, and the patches multiply to one frame."""
        problems = _at_least_one(sampling_rate_hz=self.sampling_rate_hz, samples_per_frame=self.samples_per_frame)
        if self.num_audio_channels not in (1, 2):
            problems.append(f"num_audio_channels: expected 1 or 2, got {self.num_audio_channels}")
        if problems:
            return problems
        problems += self._check_stack("encoder", self.encoder, 1, self.quantizer.input_size)
        if not problems:
            problems += self._check_stack("decoder", self.decoder_stages(), self.quantizer.output_size, 1)
        return problems

    def _check_stack(self, name: str, stages: list[CatStage], width: int, final_width: int) -> list[str]:
        problems = []
        patches = 1
        for i, stage in enumerate(stages):
            if isinstance(stage, PatchStage):
                patches *= stage.patch_size
                if name == "encoder":
                    width *= stage.patch_size
                elif width % stage.patch_size:
                    problems.append(f"{name}[{i}]: width {width} does not unfold by patch_size {stage.patch_size}")
                else:
                    width //= stage.patch_size
            elif isinstance(stage, TransformerStage):
                if stage.input_size != width:
                    problems.append(
                        f"{name}[{i}].input_size: expected {width} from the stage before, got {stage.input_size}"
                    )
                width = stage.output_size
        if width != final_width:
            problems.append(f"{name}: ends with width {width}, expected {final_width}")
        wanted = self.samples_per_frame * self.num_audio_channels
        if patches != wanted:
            problems.append(
                f"{name}: the patches multiply to {patches}, expected samples_per_frame {self.samples_per_frame}"
                + f" x {self.num_audio_channels} channels" * (self.num_audio_channels > 1)
            )
        return problems


def _stage_geometry(stage: CatStage) -> dict[str, Any]:
    if not isinstance(stage, TransformerStage):
        return {field.name: getattr(stage, field.name) for field in dataclasses.fields(stage)}
    left_out = ("always_project", "layer_scale_init")
    names = [field.name for field in dataclasses.fields(stage) if field.name not in left_out]
    return {name: getattr(stage, name) for name in names} | {
        "has_input_projection": stage.has_input_projection,
        "has_output_projection": stage.has_output_projection,
    }


CatStage.variants = {"patch": PatchStage, "transformer": TransformerStage}
TokenizerConfig.variants = {"mel_rvq": MelRvqConfig, "cat": CatConfig}


def _at_least_one(**sizes: int) -> list[str]:
    return [f"{name}: expected at least 1, got {size}" for name, size in sizes.items() if size < 1]
