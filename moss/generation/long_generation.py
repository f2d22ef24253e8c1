"""Texts that are longer than the model's context: spoken part by part, each carrying on the end of the one before.

A part's prompt holds the last seconds that were made and the words spoken in them, so that voices and pace stay.
"""

import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from moss.config.model import Member
from moss.generation.requests import Request
from moss.generation.segments import AudioSegment
from moss.generation.speech import Speech, SpeechPart
from moss.sequence.dialogue import SPEAKER_TAG, speakers
from moss.sequence.long_form import split_sentences, split_turns

logger = logging.getLogger(__name__)

TAIL_S = 5.0
"""How much of what was made stands before the next part."""
Fits = Callable[[Request], bool]
_FEWEST_CHARS = 8
_CLOSE = 30
"""A blank so near is taken for a word boundary; scripts without blanks are cut between characters."""


def split_text(text: str, member: Member, max_chars: int) -> list[str]:
    """Parts of at most `max_chars` characters where possible: dialogues end at turns, other texts at sentences."""
    return split_turns(text, max_chars) if member is Member.ttsd else split_sentences(text, max_chars)


def fitting_parts(request: Request, member: Member, tail: Tensor, fits: Fits) -> list[str] | None:
    """Split a text until each part has room, with a tail before it where that is possible.

    Args:
        request: Its text is split; its clips are codes.
        member: Decides where a text may be cut.
        tail: Codes as long as a tail, (frames, codebooks).
        fits: Whether a request has room in the model.

    Returns:
        The parts; None if even the shortest have no room.
    """
    text = request.text or ""
    for carried in (tail, tail[:0]):
        max_chars = min(request.max_chars or len(text), len(text))
        while max_chars > 0:
            parts = split_text(text, member, max_chars)
            # A tail's words are at most those of the part it comes from.
            if parts and all(
                fits(_part(request, member, part, before, None if before is None else carried))
                for before, part in zip([None, *parts[:-1]], parts, strict=True)
            ):
                return parts
            max_chars = 0 if max_chars <= _FEWEST_CHARS else max(_FEWEST_CHARS, max_chars * 3 // 4)
    return None


def speak_parts(
    request: Request, member: Member, parts: list[str], tail_frames: int, fits: Fits, speak: Callable[[Request], Speech]
) -> Speech:
    """Speak parts one after the other and join them.

    Args:
        request: What was asked for; its clips are codes. A prefix of its own comes before the first part; the clips
            that a dialogue carries on, before every part.
        member: What the model was trained to do.
        parts: Its text in order.
        tail_frames: Frames of what was made that stand before each next part; fewer where there is no room.
        fits: Whether a request has room in the model.
        speak: Makes one part; what it returns does not contain the prefix.

    Raises:
        GenerationError: A part could not be made.
    """
    made: list[Speech] = []
    # A part that ran away or was cut is no example to carry on.
    sound: tuple[str, Tensor] | None = None
    total = sum(len(part) for part in parts)
    for index, part in enumerate(parts):
        asked = request
        if request.tokens is not None:
            asked = replace(request, tokens=max(1, round(request.tokens * len(part) / total)))
        if index == 0:
            asked = _part(asked, member, part, None, None)
        else:
            asked = _carried_on(asked, member, part, sound, tail_frames, fits)
        speech = speak(asked)
        made.append(speech)
        logger.info("part %d of %d: %d frames, %s", index + 1, len(parts), len(speech.codes), speech.stop_reason)
        if speech.stop_reason == "end":
            sound = (part, speech.codes)
    return _joined(request, parts, made)


def _carried_on(
    request: Request, member: Member, part: str, sound: tuple[str, Tensor] | None, tail_frames: int, fits: Fits
) -> Request:
    """A part behind the longest tail, of at most `tail_frames`, that leaves it room."""
    text, codes = sound or ("", torch.empty(0))
    frames = min(tail_frames, len(codes))
    while frames > 0:
        asked = _part(request, member, part, tail_text(text, frames / len(codes)), codes[-frames:])
        if fits(asked):
            return asked
        frames //= 2
    return _part(request, member, part, "", codes[:0])


def _part(request: Request, member: Member, text: str, tail: str | None, codes: Tensor | None) -> Request:
    """The request of one part: `codes` and their words `tail` come before it; None for the first part."""
    asked = replace(request, text=text, max_chars=None)
    if codes is not None:
        assert tail is not None
        has_clips = member is Member.ttsd and isinstance(request.prefix, Tensor)
        before = [request.prefix] if has_clips else []
        clips = [clip for clip in (*before, codes) if isinstance(clip, Tensor) and len(clip)]
        words = (request.prompt_text or "" if has_clips else "") + (tail if len(codes) else "")
        asked = replace(asked, prefix=torch.cat(clips) if clips else None, prompt_text=words if clips else None)
    return _renumbered(asked) if member is Member.ttsd else asked


def _renumbered(request: Request) -> Request:
    """A part of a dialogue with its speakers numbered as they appear in it, each with its own clip."""
    text, before = request.text or "", request.prompt_text or ""
    order = speakers(before + text)
    number = {speaker: index for index, speaker in enumerate(order, start=1)}
    given = request.references
    return replace(
        request,
        text=_with_numbers(text, number),
        prompt_text=None if request.prompt_text is None else _with_numbers(before, number),
        references=None if given is None else [given[s - 1] if s <= len(given) else None for s in order],
    )


def _with_numbers(text: str, number: dict[int, int]) -> str:
    return SPEAKER_TAG.sub(lambda tag: f"[S{number[int(tag.group(1))]}]", text)


def tail_text(text: str, share: float) -> str:
    """The last words of a text that take about `share` of its characters; a dialogue's keep their speaker's tag."""
    cut = len(text) - round(len(text) * min(1.0, share))
    blank = text.rfind(" ", 0, cut + 1)
    in_word = 0 < cut < len(text) and text[cut].isascii()
    if cut - blank <= _CLOSE and (blank >= 0 or in_word):
        cut = blank + 1
    tags = [found for found in SPEAKER_TAG.finditer(text) if found.start() <= cut]
    if not tags:
        return text[cut:].lstrip()
    last = tags[-1]
    # A cut within a tag, or right behind it, keeps the tag.
    spoken = text[max(cut, last.end()) :].lstrip()
    return f"{last.group()} {spoken}"


def _joined(request: Request, parts: list[str], made: list[Speech]) -> Speech:
    first = made[0]
    given = first.segments[0].codes[: first.segments[0].num_given]
    codes = torch.cat([given, *(speech.codes for speech in made)])
    reasons = [speech.stop_reason for speech in made]
    return replace(
        first,
        text=request.text,
        # One recording: the tokenizer hears each part behind the one before.
        segments=[AudioSegment(codes, len(given))],
        stop_reason=next((reason for reason in reasons if reason != "end"), "end"),
        parts=tuple(
            SpeechPart(text=part, num_frames=len(speech.codes), stop_reason=str(speech.stop_reason))
            for part, speech in zip(parts, made, strict=True)
        ),
        elapsed_s=sum(speech.elapsed_s for speech in made),
    )
