"""What Delay and Local share: a user turn, then an assistant turn whose audio stands between two control tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from moss.errors import DataError
from moss.sequence.grid import Block, Encode, lay_out, num_positions
from moss.sequence.labels import next_position_labels, target_counts
from moss.sequence.prompt import (
    Codes,
    Control,
    Message,
    Placeholder,
    Prompt,
    PromptMode,
    Segment,
    UserPrompt,
    assistant_message,
    user_message,
)
from moss.sequence.templates import PromptTemplate
from moss.spec import SpecialTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatLayout:
    """Base of the layouts with one user turn and one assistant turn.

    Attributes:
        encode: The text tokenizer.
        special: Ids of the control tokens.
        num_codebooks: Codebooks of the model.
        codebook_size: Entries of each; also the pad code.
        template: The prompt format.
    """

    encode: Encode
    special: SpecialTokens
    num_codebooks: int
    codebook_size: int
    template: PromptTemplate

    delayed: ClassVar[bool] = False
    opens_audio: ClassVar[bool] = True
    """The generation prompt ends with the start of audio, so that the first target is frame 0."""

    @property
    def pad_code(self) -> int:
        """The code of a position without audio."""
        return self.codebook_size

    @property
    def text_targets(self) -> int:
        """Targets of channel 0 in an example, beside one a frame."""
        return 3  # end of audio, end of turn, newline

    @property
    def _tail(self) -> int:
        """Positions that the delay adds to a clip."""
        return self.num_codebooks - 1 if self.delayed else 0

    def message_positions(self, message: Message) -> Tensor:
        """Positions of one turn `<|im_start|>{role} ... <|im_end|>` and its newline, shape (positions, channels)."""
        return self._rows(self._message(message))

    def conversation(
        self, prompt: Prompt, codes: Sequence[Tensor] | None = None, mode: PromptMode = PromptMode.generation
    ) -> Tensor:
        """Positions of a request or an example, shape (positions, channels).

        Args:
            prompt: The user turn.
            codes: The assistant's clips, each (frames, codebooks); required by every mode but `generation`.
            mode: See `PromptMode`.

        Raises:
            DataError: Codes are missing, of another width, or outside the codebook.
        """
        user = user_prompt(prompt)
        if mode is PromptMode.generation:
            return self._rows(self._opened(user))
        if codes is None:
            raise DataError(f"mode={mode.value} needs the assistant's codes; give them, or use mode=generation")
        message = assistant_message(codes)
        if mode is PromptMode.loss:
            return self._rows(self._whole(user, message))
        # A delayed frame's later codebooks stand behind the cut; they are left for the model to complete.
        after_last_frame = 3 + self._tail  # delay slots, end of audio, end of turn, newline
        return self._rows(self._whole(user, message))[:-after_last_frame]

    def example(self, prompt: Prompt, codes: Tensor | None) -> tuple[Tensor, Tensor]:
        """A training example.

        Args:
            prompt: The user turn.
            codes: What the assistant says, shape (frames, codebooks).

        Returns:
            Inputs and labels, both (positions - 1, channels), aligned: label p is what input p predicts.

        Raises:
            DataError: Codes are missing, of another width, or outside the codebook.
        Source: MOSS-TTS moss_tts_delay/finetuning/dataset.py:125-189 @58b20a0.
        """
        user = user_prompt(prompt)
        if codes is None:
            raise DataError("an example needs the codes of the assistant; encode its audio first")
        rows = self._rows(self._whole(user, assistant_message([codes])))
        return next_position_labels(rows, num_positions(self._opened(user)), self.pad_code)

    def num_positions(self, prompt: Prompt, frames: int = 0) -> int:
        """Input positions of the example with an answer of `frames` frames, without its codes.

        Args:
            prompt: The user turn; a `Placeholder` may stand for each reference.
            frames: Length of the answer.
        """
        whole = self._whole(user_prompt(prompt), assistant_message([Placeholder(frames)]))
        return num_positions(whole) - 1  # the last position is a target only

    def target_counts(self, frames: Sequence[int], kept: Sequence[int] | None = None) -> Tensor:
        """Targets per channel of examples, without building them.

        Args:
            frames: Frames of each example's answer.
            kept: How many codebooks of each example carry loss; None for all.

        Returns:
            Counts summed over the examples, shape (channels,).
        """
        return target_counts(frames, self.num_codebooks, text_targets=self.text_targets, kept=kept)

    def _opened(self, prompt: UserPrompt) -> list[Block]:
        """The user turn and the opened assistant turn: what precedes the first target."""
        blocks = self._message(user_message(prompt, self.template))
        blocks += [self._segment(Control("im_start"), ""), self._segment("assistant\n", "")]
        if self.opens_audio:
            blocks.append(self._segment(Control("audio_start"), ""))
        return blocks

    def _whole(self, prompt: UserPrompt, answer: Message) -> list[Block]:
        """The conversation as trained."""
        return [*self._message(user_message(prompt, self.template)), *self._message(answer)]

    def _message(self, message: Message) -> list[Block]:
        segments = list(message.segments)
        head: list[Segment] = [Control("im_start")]
        if segments and isinstance(segments[0], str) and not self.template.apart:
            segments[0] = f"{message.role}\n{segments[0]}"
        else:
            head.append(f"{message.role}\n")
        return [self._segment(part, message.role) for part in [*head, *segments, Control("im_end"), "\n"]]

    def _segment(self, segment: Segment, role: str) -> Block:
        if isinstance(segment, str):
            return Block(ids=self.encode(segment))
        if isinstance(segment, Control):
            return Block(ids=[self._id(segment.name)])
        return self._audio(segment, role)

    def _audio(self, segment: Codes, role: str) -> Block:
        frames = len(segment.codes)
        tail = self._tail
        if role == "user":
            slots = [self._id("user_slot")] * (frames + tail)
        else:
            slots = [self._id("gen_slot")] * frames + ([self._id("delay_slot")] * tail if tail else [])
        ids = [self._id("audio_start"), *slots, self._id("audio_end")]
        return Block(ids=ids, codes=segment.codes, first=1, delayed=self.delayed)

    def _id(self, name: str) -> int:
        value = getattr(self.special, name)
        assert isinstance(value, int), f"the text tokenizer has no {name}"
        return value

    def _rows(self, blocks: Sequence[Block]) -> Tensor:
        return lay_out(blocks, self.num_codebooks, self.codebook_size)


def user_prompt(prompt: Prompt) -> UserPrompt:
    """The prompt of a model that answers one user turn.

    Raises:
        DataError: It is a conversation.
    """
    if not isinstance(prompt, UserPrompt):
        raise DataError(
            "this model answers one user turn; give a UserPrompt (a Conversation is for architecture=realtime)"
        )
    return prompt
