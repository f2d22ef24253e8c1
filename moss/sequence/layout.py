"""From messages to the grid of positions: shape (positions, channels), channel 0 text, then one code per codebook.

Text positions hold the pad code in every codebook; audio positions hold a slot token in channel 0. One class for
each architecture, behind one interface.
Source: MOSS-TTS moss_tts_delay/processing_moss_tts.py @58b20a0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from moss.config.model import (
    DelayModelConfig,
    LocalModelConfig,
    LocalV15ModelConfig,
    ModelConfig,
    RealtimeModelConfig,
    Template,
)
from moss.errors import ConfigError
from moss.sequence.grid import Encode
from moss.sequence.layout_chat import ChatLayout
from moss.sequence.layout_local import LocalLayout, LocalV15Layout
from moss.sequence.layout_realtime import RealtimeLayout
from moss.sequence.prompt import Prompt, PromptMode
from moss.sequence.templates import TEMPLATES, PromptTemplate
from moss.spec import SpecialTokens

__all__ = ["DelayLayout", "Encode", "Layout", "LocalLayout", "LocalV15Layout", "RealtimeLayout", "build_layout"]


class Layout(Protocol):
    """How an architecture lays requests and examples out."""

    @property
    def encode(self) -> Encode:
        """The text tokenizer."""

    @property
    def special(self) -> SpecialTokens:
        """Ids of the control tokens."""

    @property
    def num_codebooks(self) -> int:
        """Codebooks of the model."""

    @property
    def codebook_size(self) -> int:
        """Entries of each codebook."""

    @property
    def pad_code(self) -> int:
        """The code of a position without audio."""

    @property
    def template(self) -> PromptTemplate:
        """The prompt format."""

    def conversation(
        self, prompt: Prompt, codes: Sequence[Tensor] | None = None, mode: PromptMode = PromptMode.generation
    ) -> Tensor:
        """Positions of a request or an example, shape (positions, channels)."""

    def example(self, prompt: Prompt, codes: Tensor | None) -> tuple[Tensor, Tensor]:
        """Inputs and labels, both (positions - 1, channels), aligned: label p is what input p predicts."""

    def num_positions(self, prompt: Prompt, frames: int = 0) -> int:
        """Input positions of `example` with an answer of `frames` frames; a `Placeholder` may stand for codes."""

    def target_counts(self, frames: Sequence[int], kept: Sequence[int] | None = None) -> Tensor:
        """Targets per channel of answers of so many frames, of which `kept` codebooks carry loss: (channels,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayLayout(ChatLayout):
    """How MossTTSDelay lays a conversation out: codebook k runs k positions behind codebook 0."""

    template: PromptTemplate = TEMPLATES[Template.moss_tts_delay_v1]

    delayed: ClassVar[bool] = True
    opens_audio: ClassVar[bool] = False

    @property
    def text_targets(self) -> int:
        """Start of audio, delay slots, end of audio, end of turn, newline."""
        return self.num_codebooks + 3


def build_layout(config: ModelConfig, encode: Encode) -> Layout:
    """The layout of a model.

    Args:
        config: Of one of the architectures.
        encode: The model's text tokenizer.

    Raises:
        ConfigError: The template belongs to another architecture.
    """
    # LocalModelConfig is a DelayModelConfig too, so it is asked first.
    kinds: list[tuple[type, type, tuple[Template, ...]]] = [
        (LocalModelConfig, LocalLayout, (Template.moss_tts_local_v1,)),
        (DelayModelConfig, DelayLayout, (Template.moss_tts_delay_v1, Template.moss_ttsd_v1)),
        (LocalV15ModelConfig, LocalV15Layout, (Template.moss_tts_local_v15,)),
        (RealtimeModelConfig, RealtimeLayout, (Template.moss_tts_realtime_v1,)),
    ]
    layout, allowed = next((layout, allowed) for kind, layout, allowed in kinds if isinstance(config, kind))
    if config.template not in allowed:
        raise ConfigError(
            f"model.template: {config.template.value} does not belong to architecture={config.architecture}; "
            f"choose {' or '.join(template.value for template in allowed)}"
        )
    assert isinstance(config, DelayModelConfig | LocalV15ModelConfig | RealtimeModelConfig)
    lead = {"lead": config.text_lead} if isinstance(config, RealtimeModelConfig) else {}
    built: Layout = layout(
        encode=encode,
        special=config.special_tokens,
        num_codebooks=config.num_codebooks,
        codebook_size=config.codebook_size,
        template=TEMPLATES[config.template],
        **lead,
    )
    return built


def left_pad(rows: Sequence[Tensor], padding: Tensor) -> tuple[Tensor, Tensor]:
    """Stack sequences of unequal length, padded in front.

    Args:
        rows: Tensors of shape (positions, channels).
        padding: The row that fills, shape (channels,).

    Returns:
        The batch, shape (batch, positions, channels), and a bool mask (batch, positions), False where padded.
    """
    longest = max(len(item) for item in rows)
    batch = padding.repeat(len(rows), longest, 1)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, item in enumerate(rows):
        start = longest - len(item)
        batch[index, start:] = item
        mask[index, start:] = True
    return batch, mask
