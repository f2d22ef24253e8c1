"""Settings of generation: one sampler per kind of channel, limits, batching."""

from enum import StrEnum

from moss.config.schema import section


class Compatibility(StrEnum):
    """Whose behaviour the decode loop follows where the published code differs from its own training."""

    none = "none"
    """What the model was trained on: N - 1 delay slots, one penalty history per sample and channel."""
    reference = "reference"
    """The published code, off-by-one included; docs/architecture.md lists the differences."""


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

    def validate(self) -> list[str]:
        """Ranges."""
        problems = []
        if self.top_k < 0:
            problems.append(f"top_k: must be 0 (off) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p: must be in (0, 1], got {self.top_p}")
        if self.repetition_penalty <= 0:
            problems.append(f"repetition_penalty: must be positive, got {self.repetition_penalty}")
        return problems


@section
class GenerationConfig:
    """From requests to codes. The defaults are the published settings of MOSS-TTS."""

    text: SamplerConfig = SamplerConfig(temperature=1.5, top_k=50)
    audio: SamplerConfig = SamplerConfig(temperature=1.7, top_k=25, top_p=0.8)
    max_frames: int = 1000
    """A request that has not ended by then is cut and marked stop_reason=max_frames; 1000 frames are 80 s."""
    batch_size: int = 16
    seed: int = 0
    """Each request draws from its own stream, made from this seed and its id."""
    compatibility: Compatibility = Compatibility.none

    def validate(self) -> list[str]:
        """Ranges."""
        names = ("max_frames", "batch_size")
        return [f"{name}: must be at least 1, got {getattr(self, name)}" for name in names if getattr(self, name) < 1]
