"""Layouts of MossTTSLocal: one position a frame, no delay."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from moss.config.model import Template
from moss.sequence.grid import Block
from moss.sequence.layout_chat import ChatLayout, user_prompt
from moss.sequence.prompt import Message, Prompt, PromptMode, UserPrompt, assistant_message, user_message
from moss.sequence.templates import TEMPLATES, PromptTemplate
from moss.spec import IGNORE_LABEL


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalLayout(ChatLayout):
    """MossTTSLocal v1: the generation prompt ends with the start of audio.

    Source: MOSS-TTS moss_tts_local/processing_moss_tts.py @58b20a0.
    """

    template: PromptTemplate = TEMPLATES[Template.moss_tts_local_v1]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalV15Layout(ChatLayout):
    """MossTTSLocal v1.5: the prompt is tokenised in pieces, in training as in generation.

    The published training tokenises the user turn as one string, so that a full stop merges with the newline after
    the text, the prompt is counted one too long, and the first frame carries no loss; and its continuation leaves
    the references out. `reference` reproduces both.

    Attributes:
        reference: Lay out as the published processor does.

    Source: MOSS-TTS moss_tts_local_v1.5/processing_moss_tts.py @58b20a0.
    """

    template: PromptTemplate = TEMPLATES[Template.moss_tts_local_v15]
    reference: bool = False

    @property
    def text_targets(self) -> int:
        """The stop; the published labels also have end of turn and newline, which nothing ever generates."""
        return 3 if self.reference else 1

    def conversation(
        self, prompt: Prompt, codes: Sequence[Tensor] | None = None, mode: PromptMode = PromptMode.generation
    ) -> Tensor:
        """See `ChatLayout.conversation`."""
        if self.reference and mode is PromptMode.continuation and codes is not None:
            alone = dataclasses.replace(user_prompt(prompt), reference=None)
            answer = self._message(assistant_message(codes))
            return self._rows([*self._message(user_message(alone, self.template)), *answer])[:-3]
        return ChatLayout.conversation(self, prompt, codes, mode)

    def example(self, prompt: Prompt, codes: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `ChatLayout.example`; channel 0 is whether a frame follows."""
        inputs, labels = ChatLayout.example(self, prompt, codes)
        if not self.reference:
            labels[-2:, 0] = IGNORE_LABEL
        return inputs, labels

    def _whole(self, prompt: UserPrompt, answer: Message) -> list[Block]:
        if not self.reference:
            return ChatLayout._whole(self, prompt, answer)
        template = dataclasses.replace(self.template, apart=False, strip=False)
        joined = dataclasses.replace(self, template=template)
        return [*joined._message(user_message(prompt, template)), *self._message(answer)]
