"""From messages to the grid of positions: shape (positions, channels), channel 0 text, then one code per codebook.

Text positions hold the pad code in every codebook; audio positions hold a slot token in channel 0.
Source: MOSS-TTS moss_tts_delay/processing_moss_tts.py @58b20a0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moss.errors import DataError
from moss.sequence.delay import apply_delay
from moss.sequence.prompt import (
    Codes,
    Control,
    Message,
    PromptMode,
    Segment,
    UserPrompt,
    assistant_message,
    user_message,
)
from moss.spec import SpecialTokens

Encode = Callable[[str], list[int]]
"""A text tokenizer: plain text to ids, without parsing control tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayLayout:
    """How MossTTSDelay lays a conversation out."""

    encode: Encode
    special: SpecialTokens
    num_codebooks: int
    codebook_size: int

    @property
    def pad_code(self) -> int:
        """The code of a position without audio."""
        return self.codebook_size

    def message_positions(self, message: Message) -> Tensor:
        """Positions of one turn `<|im_start|>{role} ... <|im_end|>` and its newline, shape (positions, channels)."""
        head: list[str | Control | Codes] = [Control("im_start")]
        segments = list(message.segments)
        if segments and isinstance(segments[0], str):
            segments[0] = f"{message.role}\n{segments[0]}"
        else:
            head.append(f"{message.role}\n")
        parts = [self._segment(segment, message.role) for segment in [*head, *segments, Control("im_end"), "\n"]]
        return torch.cat(parts)

    def conversation(
        self, prompt: UserPrompt, codes: Sequence[Tensor] | None = None, mode: PromptMode = PromptMode.generation
    ) -> Tensor:
        """Positions of a request or an example, shape (positions, channels).

        Args:
            prompt: The user turn.
            codes: The assistant's clips, each (frames, codebooks); required by every mode but `generation`.
            mode: See `PromptMode`.

        Raises:
            DataError: Codes are missing, of another width, or outside the codebook.
        """
        user = self.message_positions(user_message(prompt))
        if mode is PromptMode.generation:
            opened: list[Segment] = [Control("im_start"), "assistant\n"]
            return torch.cat([user, *(self._segment(segment, "assistant") for segment in opened)])
        if codes is None:
            raise DataError(f"mode={mode.value} needs the assistant's codes")
        rows = torch.cat([user, self.message_positions(assistant_message(codes))])
        if mode is PromptMode.continuation:
            last_gen = int((rows[:, 0] == self.special.gen_slot).nonzero()[-1])
            rows = rows[: last_gen + 1]
        return rows

    def _segment(self, segment: str | Control | Codes, role: str) -> Tensor:
        if isinstance(segment, str):
            return self._text(self.encode(segment))
        if isinstance(segment, Control):
            return self._text([getattr(self.special, segment.name)])
        return self._audio(segment.codes, role)

    def _text(self, ids: Sequence[int]) -> Tensor:
        rows = torch.full((len(ids), 1 + self.num_codebooks), self.pad_code, dtype=torch.long)
        rows[:, 0] = torch.tensor(list(ids), dtype=torch.long)
        return rows

    def _audio(self, codes: Tensor, role: str) -> Tensor:
        self._check(codes)
        delayed = apply_delay(codes.long(), self.pad_code)
        num_frames, tail = len(codes), self.num_codebooks - 1
        if role == "user":
            slots = [self.special.user_slot] * (num_frames + tail)
        else:
            slots = [self.special.gen_slot] * num_frames + [self.special.delay_slot] * tail
        rows = self._text([self.special.audio_start, *slots, self.special.audio_end])
        rows[1:-1, 1:] = delayed
        return rows

    def _check(self, codes: Tensor) -> None:
        if codes.dim() != 2 or codes.shape[1] != self.num_codebooks or len(codes) == 0:
            raise DataError(
                f"expected codes of shape (frames, {self.num_codebooks}), got {tuple(codes.shape)}; "
                "encode with as many codebooks as the model has"
            )
        if int(codes.min()) < 0 or int(codes.max()) >= self.codebook_size:
            raise DataError(
                f"codes range over {int(codes.min())}..{int(codes.max())}, outside [0, {self.codebook_size}); "
                "were they made by another tokenizer?"
            )


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
