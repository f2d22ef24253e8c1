"""The prompt formats of the published checkpoints: data, and the rules that turn fields into text."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from moss.config.model import Template


class NullReference(StrEnum):
    """How a speaker without a clip is shown."""

    skip = "skip"
    """Not at all; the speakers after it keep their numbers."""
    none_line = "none_line"
    """By the line `[S2]: None`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTemplate:
    """One prompt format.

    Attributes:
        name: As checkpoints record it.
        text: The user's content with a `{field}` for each field (Realtime: the system and voice blocks).
        null_reference: How a speaker without a clip is shown.
        numbered_references: Clips stand under `[S1]:`, `[S2]:`, ...; otherwise bare.
        normalise: `text` goes through the text normaliser first.
        strip: Fields lose the blanks at their ends; one that is empty then is `None`.
        apart: Role, template and the user's text are tokenised as pieces of their own, so that nothing merges.
    """

    name: Template
    text: str
    null_reference: NullReference = NullReference.skip
    numbered_references: bool = True
    normalise: bool = False
    strip: bool = False
    apart: bool = False

    @property
    def hash(self) -> str:
        """Sixteen hex digits of everything that decides the ids of a prompt.

        The first format had no rules beside its text; its hash is still that of the text alone.
        """
        rules = (self.null_reference.value, self.numbered_references, self.normalise, self.strip, self.apart)
        content = self.text if rules == ("skip", True, True, False, False) else f"{self.text}\n{rules}"
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def has(self, field: str) -> bool:
        """Whether the text has a place for a field."""
        return f"{{{field}}}" in self.text


USER_TEMPLATE = (
    "<user_inst>\n- Reference(s):\n{reference}\n- Instruction:\n{instruction}\n- Tokens:\n{tokens}\n"
    "- Quality:\n{quality}\n- Sound Event:\n{sound_event}\n- Ambient Sound:\n{ambient_sound}\n"
    "- Language:\n{language}\n- Text:\n{text}\n</user_inst>"
)
"""Source: MOSS-TTS moss_tts_delay/processing_moss_tts.py, UserMessage @58b20a0 (a data format)."""

DIALOGUE_TEMPLATE = USER_TEMPLATE.replace("{tokens}", "None").replace(
    "- Text:\n{text}", "- Scene:\n{scene}\n- Text:\n{text}"
)
"""Source: the processor published with MOSS-TTSD-v1.0 (a data format)."""

SYSTEM_TEXT = (
    "You are a highly expressive text-to-speech (TTS) engine developed by Mosi Intelligence. \n"
    "You possess natural language understanding, emotional modeling, and multi-style speech generation capabilities, "
    "allowing you to generate the corresponding speech based on the text given in the assistant."
)
VOICE_TEXT = "The assistant section should be synthesized using the following voice timbre:"
"""Source of both: MOSS-TTS moss_tts_realtime/mossttsrealtime/processing_mossttsrealtime.py @58b20a0 (a data format)."""

TEMPLATES: dict[Template, PromptTemplate] = {
    template.name: template
    for template in (
        PromptTemplate(name=Template.moss_tts_delay_v1, text=USER_TEMPLATE, normalise=True),
        PromptTemplate(name=Template.moss_ttsd_v1, text=DIALOGUE_TEMPLATE, null_reference=NullReference.none_line),
        PromptTemplate(name=Template.moss_tts_local_v1, text=USER_TEMPLATE),
        PromptTemplate(
            name=Template.moss_tts_local_v15, text=USER_TEMPLATE, numbered_references=False, strip=True, apart=True
        ),
        PromptTemplate(
            name=Template.moss_tts_realtime_v1, text=f"{SYSTEM_TEXT}\n{VOICE_TEXT}{{reference}}", apart=True
        ),
    )
}
"""Every known prompt format."""
