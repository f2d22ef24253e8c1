"""Layout of MossTTSRealtime: text is given and runs `lead` tokens ahead of the audio, turn after turn.

    position   header .. header   x0 .. x11   x12 .. x12+T-1   x12+T
    codebook 0    pad      pad    pad   BOS    frames 0..T-1     EOS
    codebook k    pad      pad    pad   pad    frames 0..T-1     pad

A text of fewer than `lead` tokens is followed by its audio at once; text padding fills channel 0 behind the text.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moss.config.model import Template
from moss.errors import DataError
from moss.sequence.grid import Block, Encode, lay_out, num_positions
from moss.sequence.labels import target_counts
from moss.sequence.prompt import Clip, Conversation, Placeholder, Prompt, PromptMode, Turn, joined_clips
from moss.sequence.templates import SYSTEM_TEXT, TEMPLATES, VOICE_TEXT, PromptTemplate
from moss.spec import IGNORE_LABEL, SpecialTokens

ROLES = ("user", "assistant")


@dataclass(frozen=True, slots=True, kw_only=True)
class RealtimeLayout:
    """How MossTTSRealtime lays a conversation out.

    Attributes:
        encode: The text tokenizer.
        special: Ids of the control tokens; `user_slot` stands at frames of the voice, `text_pad` behind a text.
        num_codebooks: Codebooks of the model.
        codebook_size: Entries of each; the pad code, begin and end of a turn are the next three codes.
        lead: Text tokens before the first frame.
        template: The prompt format.
        reference: Lay out as the published code does: it tokenises a header together with its text, so that a text
            that begins with a line break shifts the audio, and its sessions close the turn before the first one.

    Source: MOSS-TTS moss_tts_realtime/finetuning/dataset.py and mossttsrealtime/processing_mossttsrealtime.py @58b20a0.
    """

    encode: Encode
    special: SpecialTokens
    num_codebooks: int
    codebook_size: int
    lead: int = 12
    template: PromptTemplate = TEMPLATES[Template.moss_tts_realtime_v1]
    reference: bool = False

    @property
    def pad_code(self) -> int:
        """The code of a position without audio."""
        return self.codebook_size

    @property
    def bos_code(self) -> int:
        """Stands in codebook 0 of the position before the first frame of a turn."""
        return self.codebook_size + 1

    @property
    def eos_code(self) -> int:
        """Stands in codebook 0 of the position after the last frame of a turn."""
        return self.codebook_size + 2

    def ensemble_rows(self, reference: Tensor | None = None) -> Tensor:
        """The system block and, with codes (frames, codebooks) of a voice, the voice block: (positions, channels).

        Raises:
            DataError: Codes of another width, or outside the codebook.
        """
        return self._rows(self._ensemble(reference))

    def turn_rows(self, turn: Turn, first: bool) -> Tensor:
        """A whole turn without the end of turn that the next one begins with, shape (positions, channels).

        Args:
            turn: With codes, or written by the user.
            first: Nothing was said before it, so that there is no turn to close. The published sessions close one
                before a user's turn all the same (`reference`).

        Raises:
            DataError: An unknown role, codes that are missing or wrong, or a text that the published layout breaks on.
        """
        return self._rows([self._turn(turn, self._begins(turn, first))])

    def open_turn_rows(self, role: str, first: bool) -> Tensor:
        """The header of a turn that is about to be spoken, shape (positions, channels).

        Args:
            role: `user` or `assistant`.
            first: Nothing was said before it, so that there is no turn to close.

        Raises:
            DataError: An unknown role.
        """
        return self._rows([Block(ids=self._header(role, first))])

    def prefill_rows(self, text_ids: Sequence[int]) -> Tensor:
        """The text that stands before the first frame, with the begin code on its last position.

        Args:
            text_ids: Ids of the turn's text; at most `lead` of them are used.

        Returns:
            Positions, shape (min(ids, lead), channels).

        Raises:
            DataError: No ids.
        """
        ids = list(text_ids[: self.lead])
        if not ids:
            raise DataError("a spoken turn needs at least one text id before its first frame; give it a text")
        return self._rows([Block(ids=ids, marks={len(ids) - 1: self.bos_code})])

    def conversation(
        self, prompt: Prompt, codes: Sequence[Tensor] | None = None, mode: PromptMode = PromptMode.generation
    ) -> Tensor:
        """Positions of a request or an example, shape (positions, channels).

        Args:
            prompt: A conversation. In generation mode a last assistant turn without codes is the one to be spoken:
                it is opened, and its text left to `prefill_rows`.
            codes: Clips of a last assistant turn that has none.
            mode: Generation ends with the opened assistant turn, loss with the last assistant turn, continuation with
                that turn's last frame.

        Raises:
            DataError: Not a conversation; codes that are missing or wrong.
        """
        conversation = _spoken(prompt, codes)
        if mode is PromptMode.generation:
            turns = list(conversation.turns)
            if turns and turns[-1].role == "assistant" and turns[-1].codes is None:
                turns.pop()
            blocks = self._ensemble(conversation.reference)
            blocks += [self._turn(turn, self._begins(turn, index == 0)) for index, turn in enumerate(turns)]
            return self._rows([*blocks, Block(ids=self._header("assistant", first=not turns))])
        blocks = self._whole(conversation)
        rows = self._rows(blocks)
        if mode is PromptMode.loss:
            return rows
        answer = blocks[-1]
        assert answer.codes is not None
        return rows[: len(rows) - len(answer) + answer.first + len(answer.codes)]

    def example(self, prompt: Prompt, codes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A training example: every assistant turn's frames and, in codebook 0, its end.

        Args:
            prompt: A conversation; turns after the assistant's last one are left out.
            codes: Of a last assistant turn that has none, shape (frames, codebooks).

        Returns:
            Inputs and labels, both (positions - 1, channels), aligned: label p is what input p predicts.

        Raises:
            DataError: Not a conversation, no assistant turn, or codes that are missing or wrong.
        """
        conversation = _spoken(prompt, None if codes is None else [codes])
        blocks = self._whole(conversation)
        rows = self._rows(blocks)
        labels = torch.full_like(rows, IGNORE_LABEL)
        turns = _until_answer(conversation)
        spoken = blocks[-len(turns) :]
        start = len(rows) - num_positions(spoken)
        for turn, block in zip(turns, spoken, strict=True):
            if turn.role == "assistant":
                assert block.codes is not None
                frames, end = start + block.first, start + block.first + len(block.codes)
                labels[frames:end, 1:] = rows[frames:end, 1:]
                labels[end, 1] = self.eos_code
            start += len(block)
        return rows[:-1], labels[1:]

    def num_positions(self, prompt: Prompt, frames: int = 0) -> int:
        """Input positions of `example`, without its codes.

        Args:
            prompt: A conversation; a `Placeholder` may stand for each turn's codes and for the reference.
            frames: Length of a last assistant turn that has neither.
        """
        clips = [Placeholder(frames)] if frames else None
        return num_positions(self._whole(_spoken(prompt, clips))) - 1  # the last position is a target only

    def target_counts(self, frames: Sequence[int], kept: Sequence[int] | None = None) -> Tensor:
        """Targets per channel, without building examples.

        Args:
            frames: Frames of each assistant turn.
            kept: How many codebooks of each of them carry loss; None for all.

        Returns:
            Counts summed over the turns, shape (channels,); codebook 0 has one more a turn, its end; text has none.
        """
        counts = target_counts(frames, self.num_codebooks, first_targets=1, kept=kept)
        counts[0] = 0
        return counts

    def _whole(self, conversation: Conversation) -> list[Block]:
        """The conversation up to the assistant's last turn; one block for each turn at the end."""
        turns = [self._turn(turn, index == 0) for index, turn in enumerate(_until_answer(conversation))]
        return [*self._ensemble(conversation.reference), *turns]

    def _ensemble(self, reference: Clip | None) -> list[Block]:
        special = self.special
        end = [special.im_end, *self.encode("\n")]
        blocks = [Block(ids=[special.im_start, *self.encode(f"system\n{SYSTEM_TEXT}"), *end])]
        if reference is not None:
            head = [special.im_start, *self.encode(f"context\n{VOICE_TEXT}")]
            ids = [*head, *[special.user_slot] * len(reference), *end]
            blocks.append(Block(ids=ids, codes=reference, first=len(head)))
        return blocks

    def _begins(self, turn: Turn, first: bool) -> bool:
        """Whether a turn of a session has none before it to close; published sessions close one before any user."""
        return first and not (self.reference and turn.role == "user")

    def _header(self, role: str, first: bool) -> list[int]:
        if role not in ROLES:
            raise DataError(f"a turn's role is {role!r}; it must be one of {', '.join(ROLES)}")
        closed = [] if first else [self.special.im_end, *self.encode("\n")]
        return [*closed, self.special.im_start, *self.encode(f"{role}\n")]

    def _turn(self, turn: Turn, first: bool) -> Block:
        header, text = self._header(turn.role, first), self.encode(turn.text)
        ids = [*header, *text]
        if self.reference:
            role = self.encode(f"{turn.role}\n")
            ids = [*header[: len(header) - len(role)], *self.encode(f"{turn.role}\n{turn.text}")]
        if turn.codes is None:
            if turn.role == "assistant":
                raise DataError(
                    f"the assistant's turn {turn.text!r} has no codes; give them, or make it the last turn of a request"
                )
            return Block(ids=ids)
        frames = len(turn.codes)
        padding = max(0, frames + self.lead + 1 - len(text)) if len(text) >= self.lead else frames + 1
        assert self.special.text_pad is not None, "the text tokenizer has no text_pad"
        ids += [self.special.text_pad] * padding
        start = len(header) + self.lead if len(text) >= self.lead else len(ids) - frames - 1
        if start + frames >= len(ids):
            raise DataError(
                f"the published layout has no room for the end of the turn {turn.text!r}, because its text merges with "
                "the header; remove the line breaks at its beginning, or use the default layout"
            )
        marks = {start - 1: self.bos_code, start + frames: self.eos_code}
        return Block(ids=ids, codes=turn.codes, first=start, marks=marks)

    def _rows(self, blocks: Sequence[Block]) -> Tensor:
        return lay_out(blocks, self.num_codebooks, self.codebook_size)


def _spoken(prompt: Prompt, codes: Sequence[Clip] | None) -> Conversation:
    """The conversation, its last assistant turn with the given codes if it has none.

    Raises:
        DataError: It is a prompt of another architecture, or the codes have no turn.
    """
    if not isinstance(prompt, Conversation):
        raise DataError("architecture=realtime speaks turns; give a Conversation instead of a UserPrompt")
    if codes is None:
        return prompt
    last = prompt.turns[-1] if prompt.turns else None
    if last is None or last.role != "assistant" or last.codes is not None:
        raise DataError(
            "codes are given, but the conversation does not end with an assistant's turn that has none; "
            "give them there, or in the turn"
        )
    answered = dataclasses.replace(last, codes=joined_clips(codes))
    return dataclasses.replace(prompt, turns=[*prompt.turns[:-1], answered])


def _until_answer(conversation: Conversation) -> list[Turn]:
    """The turns up to the assistant's last one.

    Raises:
        DataError: The assistant says nothing.
    """
    turns = list(conversation.turns)
    while turns and turns[-1].role != "assistant":
        turns.pop()
    if not turns:
        raise DataError("the conversation has no assistant turn, so there is nothing to learn or to continue")
    return turns
