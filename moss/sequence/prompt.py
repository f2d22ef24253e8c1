"""From a request or an example to the segments of a chat: the one prompt of training, generation and evaluation.

A message is a list of segments: text that the BPE encodes, a control token, or codes. Text segments never contain
control tokens, so a user's text is always text, whatever it spells. The footgun: each text segment is tokenised
alone, and control tokens part segments exactly where the published processor's special tokens part its string.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor

from moss.errors import DataError

USER_TEMPLATE = (
    "<user_inst>\n- Reference(s):\n{reference}\n- Instruction:\n{instruction}\n- Tokens:\n{tokens}\n"
    "- Quality:\n{quality}\n- Sound Event:\n{sound_event}\n- Ambient Sound:\n{ambient_sound}\n"
    "- Language:\n{language}\n- Text:\n{text}\n</user_inst>"
)
"""Source: MOSS-TTS moss_tts_delay/processing_moss_tts.py, UserMessage @58b20a0 (a data format)."""

TEMPLATE_NAME = "moss_tts_delay_v1"
TEMPLATE_HASH = hashlib.sha256(USER_TEMPLATE.encode()).hexdigest()[:16]


class PromptMode(StrEnum):
    """What the rows are for."""

    generation = "generation"
    """The user turn and the opened assistant turn."""
    loss = "loss"
    """The whole conversation, as trained."""
    continuation = "continuation"
    """The conversation cut after the last complete frame of the assistant's codes, to be carried on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserPrompt:
    """What a user asks for; absent fields are rendered as `None`.

    Attributes:
        text: The words to speak; pinyin, /IPA/ and [pause 1.5s] are passed on untouched.
        reference: Codes (frames, codebooks) of each speaker's voice clip; None keeps a speaker's place empty.
        tokens: Wanted length in frames.
        language: Full English name, e.g. "French".
    """

    text: str | None = None
    reference: Sequence[Tensor | None] | None = None
    instruction: str | None = None
    tokens: int | None = None
    quality: str | None = None
    sound_event: str | None = None
    ambient_sound: str | None = None
    language: str | None = None


@dataclass(frozen=True, slots=True)
class Control:
    """A control token, by its field name in `SpecialTokens`."""

    name: str


@dataclass(frozen=True, slots=True)
class Codes:
    """A block of audio, shape (frames, codebooks)."""

    codes: Tensor


Segment = str | Control | Codes


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of the conversation."""

    role: str
    segments: Sequence[Segment] = field(default_factory=list)


def user_message(prompt: UserPrompt) -> Message:
    """Render the user turn.

    The template is filled in one pass, so that braces in a user's text stay what they are (the published
    processor replaces field after field and would fill a `{language}` found in the text).
    """
    before, after = USER_TEMPLATE.split("{reference}")
    values = {
        name: _shown(getattr(prompt, name))
        for name in ("instruction", "tokens", "quality", "sound_event", "ambient_sound", "language", "text")
    }
    tail = after.format_map(values)
    segments: list[Segment] = [before]
    if prompt.reference is None:
        segments.append("None")
    else:
        first = True
        for index, codes in enumerate(prompt.reference):
            if codes is None:
                continue
            segments += [f"{'' if first else chr(10)}[S{index + 1}]:\n", Codes(codes)]
            first = False
    segments.append(tail)
    return Message(role="user", segments=_joined(segments))


def assistant_message(codes: Sequence[Tensor]) -> Message:
    """The assistant turn: clips that follow each other without text are one block of audio.

    Raises:
        DataError: No codes, or a clip without frames.
    """
    if not codes or any(len(clip) == 0 for clip in codes):
        raise DataError("an assistant turn needs at least one frame of codes in every clip")
    return Message(role="assistant", segments=[Codes(torch.cat(list(codes)) if len(codes) > 1 else codes[0])])


def content_string(message: Message) -> str:
    """The message's content as the published processors print it, audio as `<|audio|>`."""
    return "".join(segment if isinstance(segment, str) else "<|audio|>" for segment in message.segments)


def _shown(value: str | int | None) -> str:
    return "None" if value is None else str(value)


def _joined(segments: list[Segment]) -> list[Segment]:
    """Merge neighbouring texts, because the BPE must see them as one string."""
    merged: list[Segment] = []
    for segment in segments:
        if isinstance(segment, str) and merged and isinstance(merged[-1], str):
            merged[-1] += segment
        else:
            merged.append(segment)
    return merged
