"""Settings of generation: one sampler per kind of channel, limits, batching."""

from enum import StrEnum

from moss.config.schema import below_one, section


class Compatibility(StrEnum):
    """Whose behaviour the decode loop follows where the published code differs from its own training."""

    none = "none"
    """What the model was trained on: N - 1 delay slots, one penalty history per sample and channel."""
    reference = "reference"
    """The published code, off-by-one included; docs/architecture.md lists the differences."""


class Attention(StrEnum):
    """Which attention kernel the backbone uses; the choice is logged."""

    auto = "auto"
    """flash_attention_2 on CUDA in half precision where the package is installed, sdpa elsewhere."""
    sdpa = "sdpa"
    flash_attention_2 = "flash_attention_2"
    eager = "eager"


class Offload(StrEnum):
    """Where the weights of the backbone wait."""

    none = "none"
    cpu = "cpu"
    """In main memory; each layer is copied to the device when it is needed."""


@section
class SamplerConfig:
    """How one channel's next id is drawn."""

    temperature: float = 1.0
    """0 or less takes the most likely id."""
    top_k: int = 0
    """Keep only the k most likely ids; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most likely ids up to this share of probability, the one that crosses it included."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of ids seen before in the same channel; 1 does nothing."""
    penalty_window: int = 0
    """Only ids of the last so many frames count as seen; 0 counts all."""

    def validate(self) -> list[str]:
        """Ranges."""
        problems = []
        if self.top_k < 0:
            problems.append(f"top_k: must be 0 (off) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p: must be in (0, 1], got {self.top_p}")
        if self.repetition_penalty <= 0:
            problems.append(f"repetition_penalty: must be positive, got {self.repetition_penalty}")
        if self.penalty_window < 0:
            problems.append(f"penalty_window: must be 0 (everything) or more, got {self.penalty_window}")
        return problems


@section
class GenerationConfig:
    """From requests to codes. The defaults are the published settings of MOSS-TTS."""

    text: SamplerConfig = SamplerConfig(temperature=1.5, top_k=50)
    audio: SamplerConfig = SamplerConfig(temperature=1.7, top_k=25, top_p=0.8)
    max_frames: int = 1000
    """What has not ended by then is cut and marked stop_reason=max_frames; 1000 frames are 80 s. Texts likely to
    take longer are spoken in parts, unless the limit is below 4 s."""
    batch_size: int = 16
    seed: int = 0
    """Each request draws from its own stream, made from this seed and its id."""
    compatibility: Compatibility = Compatibility.none
    num_codebooks: int | None = None
    """Local only: speak the first so many codebooks of each frame; None speaks all."""
    codebooks: list[SamplerConfig] | None = None
    """One whole sampler per codebook that is spoken, in place of `audio`."""
    runaway_repeats: int = 100
    """Stop a request whose last so many frames are one and the same (8 s), or repeat a pattern of up to 12 frames;
    0 never does. The stop reason is `runaway`."""
    attention: Attention = Attention.auto
    offload: Offload = Offload.none

    def validate(self) -> list[str]:
        """Ranges."""
        names = ("max_frames", "batch_size")
        problems = below_one(self, names)
        if self.num_codebooks is not None and self.num_codebooks < 1:
            problems.append(f"num_codebooks: must be at least 1, got {self.num_codebooks}")
        if self.runaway_repeats < 0:
            problems.append(f"runaway_repeats: must be 0 (off) or more, got {self.runaway_repeats}")
        return problems


RECOMMENDED: dict[str, GenerationConfig] = {
    "tts": GenerationConfig(),
    "ttsd": GenerationConfig(
        audio=SamplerConfig(temperature=1.1, top_k=50, top_p=0.9, repetition_penalty=1.1),
    ),
    "voice_generator": GenerationConfig(
        audio=SamplerConfig(temperature=1.5, top_k=50, top_p=0.6, repetition_penalty=1.1),
    ),
    "sound_effect": GenerationConfig(
        audio=SamplerConfig(temperature=1.5, top_k=50, top_p=0.6, repetition_penalty=1.2),
    ),
    "local": GenerationConfig(
        audio=SamplerConfig(temperature=1.0, top_k=50, top_p=0.95, repetition_penalty=1.1),
    ),
    "local_v15": GenerationConfig(
        text=SamplerConfig(temperature=1.0, top_k=50),
        audio=SamplerConfig(temperature=1.7, top_k=25, top_p=0.8),
    ),
    "realtime": GenerationConfig(
        audio=SamplerConfig(temperature=0.8, top_k=30, top_p=0.6, repetition_penalty=1.1, penalty_window=50),
    ),
}
"""Recommended settings of the published members.

Source: model cards in OpenMOSS/MOSS-TTS @58b20a0.
"""


def recommended(architecture: str, member: str) -> GenerationConfig:
    """The published settings for a model: by architecture where it has its own, by member otherwise."""
    return RECOMMENDED[architecture if architecture in RECOMMENDED else member]
