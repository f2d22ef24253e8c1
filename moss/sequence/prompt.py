"""From a request or an example to the segments of a chat: the one prompt of training, generation and evaluation.

A message is a list of segments: text that the BPE encodes, a control token, or codes. Text segments never contain
control tokens, so a user's text is always text, whatever it spells. The footgun: each text segment is tokenised
alone, and control tokens part segments exactly where the published processor's special tokens part its string.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor

from moss.config.model import Template
from moss.errors import DataError
from moss.sequence.templates import TEMPLATES, NullReference, PromptTemplate

_DELAY = TEMPLATES[Template.moss_tts_delay_v1]


class PromptMode(StrEnum):
    """What the rows are for."""

    generation = "generation"
    """The user turn and the opened assistant turn."""
    loss = "loss"
    """The whole conversation, as trained."""
    continuation = "continuation"
    """The conversation cut after the last complete frame of the assistant's codes, to be carried on."""


@dataclass(frozen=True, slots=True)
class Placeholder:
    """Stands for codes of so many frames where only lengths are asked."""

    frames: int

    def __len__(self) -> int:
        return self.frames


Clip = Tensor | Placeholder
"""Codes of shape (frames, codebooks), or their length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserPrompt:
    """What a user asks for; absent fields are rendered as `None`.

    Attributes:
        text: The words to speak; pinyin, /IPA/ and [pause 1.5s] are passed on untouched.
        reference: Codes (frames, codebooks) of each speaker's voice clip; None keeps a speaker's place empty.
        tokens: Wanted length in frames; formats without a place for it leave it out.
        language: Full English name, e.g. "French".
        scene: Where a dialogue takes place; formats without a place for it leave it out.
    """

    text: str | None = None
    reference: Sequence[Clip | None] | None = None
    instruction: str | None = None
    tokens: int | None = None
    quality: str | None = None
    sound_event: str | None = None
    ambient_sound: str | None = None
    language: str | None = None
    scene: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One spoken turn of a Realtime conversation.

    Attributes:
        role: `user` or `assistant`.
        text: Its words.
        codes: Its audio, shape (frames, codebooks); None for a user's written turn, and for an assistant's turn
            that is still to be spoken.
    """

    role: str
    text: str
    codes: Clip | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Realtime's prompt: whose voice the assistant has, and what was said.

    Attributes:
        reference: Codes (frames, codebooks) of the assistant's voice; None for the model's own choice.
        turns: In order.
    """

    reference: Clip | None = None
    turns: Sequence[Turn] = ()


Prompt = UserPrompt | Conversation


@dataclass(frozen=True, slots=True)
class Control:
    """A control token, by its field name in `SpecialTokens`."""

    name: str


@dataclass(frozen=True, slots=True)
class Codes:
    """A block of audio, shape (frames, codebooks)."""

    codes: Clip


Segment = str | Control | Codes


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of the conversation."""

    role: str
    segments: Sequence[Segment] = field(default_factory=list)


def user_message(prompt: UserPrompt, template: PromptTemplate = _DELAY) -> Message:
    """Render the user turn.

    The template is filled in one pass, so that braces in a user's text stay what they are (the published
    processor replaces field after field and would fill a `{language}` found in the text).
    """
    before, after = template.text.split("{reference}")
    middle, end = after.split("{text}")
    names = ("instruction", "tokens", "quality", "sound_event", "ambient_sound", "language", "scene")
    middle = middle.format_map({name: _shown(getattr(prompt, name), template.strip) for name in names})
    references = _references(prompt.reference, template)
    if template.apart:
        return Message(role="user", segments=[before, *references, middle, prompt.text or "", end])
    return Message(role="user", segments=_joined([before, *references, middle, _shown(prompt.text), end]))


def assistant_message(codes: Sequence[Clip]) -> Message:
    """The assistant turn: clips that follow each other without text are one block of audio.

    Raises:
        DataError: No codes, or a clip without frames.
    """
    return Message(role="assistant", segments=[Codes(joined_clips(codes))])


def joined_clips(codes: Sequence[Clip]) -> Clip:
    """Clips one after the other, as one.

    Raises:
        DataError: No codes, or a clip without frames.
    """
    if not codes or any(len(clip) == 0 for clip in codes):
        raise DataError("an assistant turn needs at least one frame of codes in every clip; leave empty clips out")
    if len(codes) == 1:
        return codes[0]
    tensors = [clip for clip in codes if isinstance(clip, Tensor)]
    return torch.cat(tensors) if len(tensors) == len(codes) else Placeholder(sum(len(clip) for clip in codes))


def content_string(message: Message) -> str:
    """The message's content as the published processors print it, audio as `<|audio|>`."""
    return "".join(segment if isinstance(segment, str) else "<|audio|>" for segment in message.segments)


def _references(reference: Sequence[Clip | None] | None, template: PromptTemplate) -> list[Segment]:
    """What stands under `- Reference(s):`, one speaker a line."""
    if reference is None or (not template.numbered_references and all(clip is None for clip in reference)):
        return ["None"]
    lines: list[list[Segment]] = []
    for number, clip in enumerate(reference, start=1):
        if clip is not None:
            lines.append([f"[S{number}]:\n", Codes(clip)] if template.numbered_references else [Codes(clip)])
        elif template.null_reference is NullReference.none_line:
            lines.append([f"[S{number}]: None"])
    segments: list[Segment] = []
    for index, line in enumerate(lines):
        # Pieces tokenised apart follow each other without a newline, as the published generation has it.
        segments += line if index == 0 or template.apart else ["\n", *line]
    return segments


def _shown(value: str | int | None, strip: bool = False) -> str:
    shown = "None" if value is None else str(value)
    return (shown.strip() or "None") if strip else shown


def _joined(segments: list[Segment]) -> list[Segment]:
    """Merge neighbouring texts, because the BPE must see them as one string."""
    merged: list[Segment] = []
    for segment in segments:
        if isinstance(segment, str) and merged and isinstance(merged[-1], str):
            merged[-1] += segment
        else:
            merged.append(segment)
    return merged
