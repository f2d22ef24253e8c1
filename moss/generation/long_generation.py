"""Texts that are too long for one go: spoken part by part, each carrying on the end of the one before.

A part's prompt holds the last seconds that were made and the words spoken in them, so that voices and pace stay. A
speaker of a dialogue who is not heard in these, and has no clip, is shown by the end of one of the turns made earlier.
Where a turn begins and ends in a part is not known; its share of the part's words is taken for its share of the frames.
"""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moss.config.model import Member
from moss.generation.requests import Request
from moss.generation.segments import AudioSegment
from moss.generation.speech import Speech, SpeechPart
from moss.sequence.dialogue import SPEAKER_TAG, speaker_turns, speakers
from moss.sequence.long_form import split_sentences, split_turns

logger = logging.getLogger(__name__)

TAIL_S = 5.0
"""How much of what was made stands before the next part, and of a speaker who is not heard in it."""
VOICE_S = 1.0
"""A shorter stretch does not show a voice well."""
COMFORTABLE_SHARE = 0.8
"""Parts are made so short that their expected frames take this share of the limit: some speak slowly."""
SHORTEST_LIMIT_S = 4.0
"""A limit of frames below this leaves no room for a sentence; it cuts the text instead of splitting it."""
_PUBLISHED_FRAMES_PER_S = 12.5
_LATIN_FRAMES, _IDEOGRAPH_FRAMES = 0.8673, 3.0984
_IDEOGRAPH = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f]")
_PAUSE = re.compile(r"\[pause\s+(\d+(?:\.\d+)?)\s*s\]", re.IGNORECASE)
Fits = Callable[[Request], bool]
_FEWEST_CHARS = 8
_CLOSE = 30
"""A blank so near is taken for a word boundary; scripts without blanks are cut between characters."""


def split_text(text: str, member: Member, max_chars: int) -> list[str]:
    """Parts of at most `max_chars` characters where possible: dialogues end at turns, other texts at sentences."""
    return split_turns(text, max_chars) if member is Member.ttsd else split_sentences(text, max_chars)


def expected_frames(text: str, frames_per_s: float = _PUBLISHED_FRAMES_PER_S) -> float:
    """How long a text is likely to take, in frames; speaker tags take no time, `[pause 1.5s]` what it says.

    Source: the default lengths of the published demonstration, MOSS-TTS @58b20a0 (12.5 frames a second).
    """
    pauses_s = sum(float(pause) for pause in _PAUSE.findall(text))
    words = SPEAKER_TAG.sub("", _PAUSE.sub("", text)).strip()
    ideographs = len(_IDEOGRAPH.findall(words))
    frames = ideographs * _IDEOGRAPH_FRAMES + (len(words) - ideographs) * _LATIN_FRAMES
    return frames * frames_per_s / _PUBLISHED_FRAMES_PER_S + pauses_s * frames_per_s


@dataclass(frozen=True, slots=True)
class FrameLimit:
    """What one go can speak.

    Attributes:
        max_frames: Where it is cut.
        frames_per_s: Of the codes.
    """

    max_frames: int
    frames_per_s: float

    def expected(self, request: Request) -> float:
        """How long a request is likely to take: the length that it asks for, else that of its text."""
        return expected_frames(request.text or "", self.frames_per_s) if request.tokens is None else request.tokens

    def would_cut(self, request: Request) -> bool:
        """Whether a request is likely to be cut and should be split."""
        return self._splits and self.expected(request) > self.max_frames

    def is_comfortable(self, request: Request) -> bool:
        """Whether a part is short enough."""
        return not self._splits or self.expected(request) <= COMFORTABLE_SHARE * self.max_frames

    @property
    def _splits(self) -> bool:
        return self.max_frames >= SHORTEST_LIMIT_S * self.frames_per_s


def fitting_parts(
    request: Request, member: Member, tail: Tensor, fits: Fits, is_short: Fits = lambda _: True
) -> list[str] | None:
    """Split a text until each part has room, with a tail before it where that is possible.

    Args:
        request: Its text is split; its clips are codes.
        member: Decides where a text may be cut.
        tail: Codes as long as a tail, (frames, codebooks).
        fits: Whether a request has room in the model.
        is_short: Whether a request's text is; one that cannot be cut any more need not be.

    Returns:
        The parts; None if even the shortest have no room.
    """
    text = request.text or ""
    by_speaker = member is Member.ttsd
    for carried in (tail, tail[:0]):
        max_chars = min(request.max_chars or len(text), len(text))
        while max_chars > 0:
            parts = split_text(text, member, max_chars)
            asked = [_shared(request, part, parts) for part in parts]
            if parts and all(
                fits(_part(asked[index], member, part, _longest_before(request, parts, index, carried, by_speaker)))
                and (is_short(replace(asked[index], text=part)) or len(split_text(part, member, _FEWEST_CHARS)) == 1)
                for index, part in enumerate(parts)
            ):
                return parts
            max_chars = 0 if max_chars <= _FEWEST_CHARS else max(_FEWEST_CHARS, max_chars * 3 // 4)
    return None


def speak_parts(
    request: Request,
    member: Member,
    parts: list[str],
    frames_per_s: float,
    fits: Fits,
    speak: Callable[[Request], Speech],
) -> Speech:
    """Speak parts one after the other and join them.

    Args:
        request: What was asked for; its clips are codes. A prefix of its own comes before the first part; the clips
            that a dialogue carries on, before every part.
        member: What the model was trained to do.
        parts: Its text in order.
        frames_per_s: Of the codes; `TAIL_S` of what was made stand before each next part, fewer where there is no room.
        fits: Whether a request has room in the model.
        speak: Makes one part; what it returns does not contain the prefix.

    Raises:
        GenerationError: A part could not be made.
    """
    made: list[Speech] = []
    # A part that ran away or was cut is no example to carry on.
    sound: Stretch | None = None
    voices = Voices(request, member, frames_per_s)
    for index, part in enumerate(parts):
        asked = _shared(request, part, parts)
        if index == 0:
            asked = _part(asked, member, part, None)
        else:
            asked = _carried_on(asked, member, part, sound, voices, fits)
        speech = speak(asked)
        made.append(speech)
        logger.info("part %d of %d: %d frames, %s", index + 1, len(parts), len(speech.codes), speech.stop_reason)
        voices.hear(part, speech)
        if speech.stop_reason == "end":
            sound = Stretch(part, speech.codes)
    return _joined(request, parts, made)


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Codes (frames, codebooks) and the words in them."""

    text: str
    codes: Tensor

    def last(self, frames: int) -> "Stretch":
        """The end of it, all if it is no longer."""
        start = max(0, len(self.codes) - frames)
        return Stretch(tail_text(self.text, 1 - start / max(1, len(self.codes))), self.codes[start:])


class Voices:
    """How the speakers of a dialogue sounded in the parts made so far; of other texts nothing is kept.

    Args:
        request: The whole dialogue; speakers with a clip are known by that.
        member: What the model was trained to do.
        frames_per_s: Of the codes.
    """

    def __init__(self, request: Request, member: Member, frames_per_s: float) -> None:
        self._is_dialogue, self._frames_per_s = member is Member.ttsd, frames_per_s
        self.most_frames = round(TAIL_S * frames_per_s)
        self._known = _with_clips(request)
        self._kept: dict[int, tuple[bool, Stretch]] = {}

    def hear(self, part: str, speech: Speech) -> None:
        """Keep the end of each speaker's last turn that is long enough to show a voice, or of the longest."""
        if not self._is_dialogue:
            return
        whole = speech.stop_reason == "end"
        frames: float = len(speech.codes)
        if not whole:
            # One that was cut did not come to its last words; one that ran away went on behind them.
            expected = expected_frames(part, self._frames_per_s)
            frames = expected if speech.stop_reason == "runaway" else max(frames, expected)
        for speaker, turn in turn_stretches(part, speech.codes, frames):
            new = turn.last(self.most_frames)
            was_whole, old = self._kept.get(speaker, (False, None))
            longer = old is None or len(new.codes) >= min(len(old.codes), self._frames_per_s * VOICE_S)
            if whole > was_whole or (whole == was_whole and longer):
                # The latest speaker comes last.
                self._kept.pop(speaker, None)
                self._kept[speaker] = whole, new

    def unheard(self, part: str, before: Stretch | None) -> list[Stretch]:
        """What shows the speakers of a part that were heard, have no clip and are not heard in `before`."""
        if not self._is_dialogue:
            return []
        heard: dict[int, int] = {}
        if before is not None:
            for speaker, turn in turn_stretches(before.text, before.codes, len(before.codes)):
                heard[speaker] = heard.get(speaker, 0) + len(turn.codes)
        wanted = set(speakers(part)) - self._known
        return [
            voice
            for speaker, (_, voice) in self._kept.items()
            if speaker in wanted and heard.get(speaker, 0) < min(len(voice.codes), self._frames_per_s * VOICE_S)
        ]


def turn_stretches(dialogue: str, codes: Tensor, frames: float) -> list[tuple[int, Stretch]]:
    """The speaker and likely frames of each turn, where that has any.

    Args:
        dialogue: What is spoken in the codes.
        codes: Shape (frames, codebooks).
        frames: How many the whole dialogue takes; those that are not there are left out.
    """
    turns = [(speaker, words.strip()) for speaker, words in speaker_turns(dialogue)]
    weights = [expected_frames(words) for _, words in turns]
    per_weight = frames / max(sum(weights), 1.0)
    found, done = [], 0.0
    for (speaker, words), weight in zip(turns, weights, strict=True):
        start, done = done, done + weight
        first, end = round(start * per_weight), round(done * per_weight)
        there = codes[first:end]
        if len(there) < end - first:
            # Cut within the turn: its first words only.
            words = words[: round(len(words) * len(there) / (end - first))].rpartition(" ")[0] or words[:1]
        if len(there):
            found.append((speaker, Stretch(f"[S{speaker}] {words}", there)))
    return found


def _carried_on(
    request: Request, member: Member, part: str, sound: Stretch | None, voices: Voices, fits: Fits
) -> Request:
    """A part behind the longest tail, and the voices that are not in it, that leave it room."""
    frames = voices.most_frames
    while frames > 0:
        tail = None if sound is None else sound.last(frames)
        shown = [voice.last(frames) for voice in voices.unheard(part, tail)]
        before = shown if tail is None else [*shown, tail]
        asked = _part(request, member, part, before)
        if not before or fits(asked):
            return asked
        frames //= 2
    if voices.unheard(part, None):
        logger.warning("no room to show the speakers of %r how they sounded before; lower max_frames", part[:40])
    return _part(request, member, part, [])


def _shared(request: Request, part: str, parts: Sequence[str]) -> Request:
    """The request with a part's share of the wanted length."""
    if request.tokens is None:
        return request
    return replace(request, tokens=max(1, round(request.tokens * len(part) / sum(map(len, parts)))))


def _longest_before(
    request: Request, parts: Sequence[str], index: int, tail: Tensor, by_speaker: bool
) -> list[Stretch] | None:
    """What may stand before a part at most: a tail's words are at most those of the part it comes from."""
    if index == 0:
        return None
    before = [Stretch(parts[index - 1], tail)]
    if by_speaker:
        last = {speaker: f"[S{speaker}] {words}" for part in parts[:index] for speaker, words in speaker_turns(part)}
        wanted = set(speakers(parts[index])) - _with_clips(request)
        before = [*(Stretch(turn, tail) for speaker, turn in last.items() if speaker in wanted), *before]
    return before if len(tail) else []


def _with_clips(request: Request) -> set[int]:
    """Speakers whose clip stands in every part's prompt."""
    given = {number for number, clip in enumerate(request.references or (), start=1) if clip is not None}
    return given | {int(number) for number in SPEAKER_TAG.findall(request.prompt_text or "")}


def _part(request: Request, member: Member, text: str, before: Sequence[Stretch] | None) -> Request:
    """The request of one part and of what comes before it; None for the first part."""
    asked = replace(request, text=text, max_chars=None)
    if before is not None:
        stretches = [stretch for stretch in before if len(stretch.codes)]
        if member is Member.ttsd and isinstance(request.prefix, Tensor):
            stretches.insert(0, Stretch(request.prompt_text or "", request.prefix))
        asked = replace(
            asked,
            prefix=torch.cat([stretch.codes for stretch in stretches]) if stretches else None,
            prompt_text="".join(stretch.text for stretch in stretches) if stretches else None,
        )
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
