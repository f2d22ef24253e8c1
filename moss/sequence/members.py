"""From the fields of a request or an example to the prompt: what each member of the family needs and refuses."""

from collections.abc import Sequence
from typing import Any

from moss.config.model import Member, Template
from moss.errors import DataError
from moss.sequence.dialogue import check_speakers
from moss.sequence.languages import language_name
from moss.sequence.normalize import normalize_tts_text
from moss.sequence.prompt import Clip, Conversation, Turn, UserPrompt
from moss.sequence.templates import TEMPLATES

NEEDED: dict[Member, tuple[str, ...]] = {
    Member.tts: ("text",),
    Member.ttsd: ("text",),
    Member.voice_generator: ("text", "instruction"),
    Member.sound_effect: ("ambient_sound",),
}
"""Fields without which a member has nothing to do."""

REFUSED: dict[Member, tuple[str, ...]] = {
    Member.tts: (),
    Member.ttsd: (),
    Member.voice_generator: ("references",),
    Member.sound_effect: ("text", "references"),
}
"""Fields that a member was never trained with."""


def member_prompt(
    member: Member,
    template: Template,
    *,
    text: str | None = None,
    references: Sequence[Clip | None] | None = None,
    language: str | None = None,
    instruction: str | None = None,
    tokens: int | None = None,
    ambient_sound: str | None = None,
    sound_event: str | None = None,
    quality: str | None = None,
    scene: str | None = None,
    reference: bool = False,
) -> UserPrompt:
    """The prompt of a member for given fields; the one place where fields become a prompt.

    Pinyin (`nin2 hao3`), /IPA/ and `[pause 1.5s]` are passed on. Where the template normalises, blanks beside them may
    change; with `reference` dots, dashes and blanks within /IPA/ too.

    Args:
        member: What the model was trained to do.
        template: The model's prompt format; decides whether the text is normalised.
        text: The words, of a dialogue with `[S1]` tags.
        references: Codes (frames, codebooks) of each speaker's clip, None for a speaker without one.
        language: A code or an English name; empty for none.
        instruction: Of the voice generator, the voice in words.
        tokens: Wanted length in frames; a format without a place for it leaves it out.
        ambient_sound: Of the sound-effect model, the sound in words.
        sound_event: Passed on.
        quality: Passed on.
        scene: Where a dialogue takes place.
        reference: Normalise as the published code does where it is wrong.

    Raises:
        DataError: A needed field is missing, a field is refused or empty, the language is unknown, the speaker tags
            do not fit, or a clip is none.
    """
    fields = {
        "text": text,
        "references": references or None,
        "instruction": instruction,
        "ambient_sound": ambient_sound,
    }
    _check_fields(member, fields)
    _check_values(template, references or (), tokens, scene)
    if member is Member.ttsd and text is not None:
        check_speakers(text, len(references) if references else None)
    return UserPrompt(
        text=_normalised(text, reference) if text is not None and TEMPLATES[template].normalise else text,
        reference=references or None,
        language=language_name(language) if language else None,
        instruction=instruction,
        tokens=tokens,
        ambient_sound=ambient_sound,
        sound_event=sound_event,
        quality=quality,
        scene=scene,
    )


def realtime_prompt(text: str, reference: Clip | None = None) -> Conversation:
    """A conversation of one assistant turn that is still to be spoken.

    Args:
        text: Its words.
        reference: Codes (frames, codebooks) of the assistant's voice.

    Raises:
        DataError: No words.
    """
    if not text.strip():
        raise DataError(f"text: member={Member.realtime.value} needs words to speak, got {text!r}")
    return Conversation(reference=reference, turns=[Turn("assistant", text)])


def _check_fields(member: Member, fields: dict[str, Any]) -> None:
    """Refuse fields that a member needs and lacks, or has and refuses."""
    if member not in NEEDED:
        raise DataError(f"member={member.value} speaks conversations; build its prompt with `realtime_prompt`")
    for name in NEEDED[member]:
        value = fields[name]
        if value is None or not str(value).strip():
            raise DataError(f"{name}: member={member.value} needs it; give it")
    for name in REFUSED[member]:
        if fields[name] is not None:
            raise DataError(f"{name}: member={member.value} takes none; leave it out")


def _check_values(template: Template, references: Sequence[Clip | None], tokens: int | None, scene: str | None) -> None:
    """Refuse what no member can use."""
    if scene is not None and not TEMPLATES[template].has("scene"):
        raise DataError(f"scene: the prompt format {template.value} has no place for it; leave it out")
    if tokens is not None and tokens < 1:
        raise DataError(f"tokens: a length of {tokens} frames is impossible; give at least 1, or leave it out")
    for number, clip in enumerate(references, start=1):
        if clip is not None and len(clip) == 0:
            raise DataError(f"references: clip {number} has no frames; give null for a speaker without a clip")


def _normalised(text: str, reference: bool) -> str:
    cleaned = normalize_tts_text(text, reference=reference)
    if not cleaned:
        raise DataError(f"text: nothing speakable is left of {text[:40]!r}; give words")
    return cleaned
