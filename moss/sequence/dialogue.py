"""Speaker tags `[S1]` of a dialogue: reading, checking, putting transcripts in front, cleaning up."""

import re
from collections.abc import Sequence

from moss.errors import DataError

MAX_SPEAKERS = 5
"""Source: MOSS-TTS docs/moss_ttsd_model_card.md @58b20a0."""

SPEAKER_TAG = re.compile(r"\[S(\d+)\]")


def speaker_turns(text: str) -> list[tuple[int, str]]:
    """Who says what: (speaker from 1 on, words as written) for each tag.

    Raises:
        DataError: No tag, or words before the first one.
    """
    parts = SPEAKER_TAG.split(text)
    if len(parts) == 1:
        raise DataError(f"the dialogue {_start(text)} has no speaker tag; write [S1] before the first speaker's words")
    if parts[0].strip():
        raise DataError(f"the words {_start(parts[0])} stand before the first speaker tag; write [S1] before them")
    return [(int(number), words) for number, words in zip(parts[1::2], parts[2::2], strict=True)]


def speakers(text: str) -> list[int]:
    """Speakers in the order of their first words.

    Raises:
        DataError: See `speaker_turns`.
    """
    return list(dict.fromkeys(number for number, _ in speaker_turns(text)))


def check_speakers(text: str, num_references: int | None = None) -> int:
    """Refuse a dialogue that the model cannot be asked for, and count its speakers.

    Args:
        text: With tags.
        num_references: Places of the reference list, empty ones included; None without references.

    Raises:
        DataError: No tag, too many speakers, speakers that do not first appear as 1, 2, 3, ..., or a number of
            references that is not the number of speakers.
    """
    found = speakers(text)
    if len(found) > MAX_SPEAKERS:
        raise DataError(f"the dialogue has {len(found)} speakers, the model knows {MAX_SPEAKERS}; merge some of them")
    if found != list(range(1, len(found) + 1)):
        shown = " ".join(f"[S{number}]" for number in found)
        raise DataError(
            f"the speakers first appear as {shown}; number them [S1], [S2], ... in this order and without holes"
        )
    if num_references is not None and num_references != len(found):
        what = f"tag [S{len(found)}] has no reference" if num_references < len(found) else "some have nothing to say"
        raise DataError(
            f"{num_references} references for {len(found)} speakers: {what}; give one for each speaker, null for a "
            "speaker without a clip"
        )
    return len(found)


def dialogue_text(prompt_texts: Sequence[str | None], text: str) -> str:
    """The text of a cloned dialogue: the clips' transcripts in speaker order, without separator, then the dialogue.

    Args:
        prompt_texts: Transcript of each speaker's clip, with or without its tag; None for a speaker without a clip.
        text: The dialogue to speak.

    Returns:
        One text; where the same speaker goes on, the second tag is left out.

    Raises:
        DataError: A transcript is empty, or belongs to another speaker.
    Source: MOSS-TTS clis/moss_ttsd_app.py @58b20a0.
    """
    before = ""
    for number, transcript in enumerate(prompt_texts, start=1):
        if transcript is None:
            continue
        words = transcript.strip()
        if not words:
            raise DataError(
                f"the transcript of speaker {number}'s clip is empty; write what is said in it, or use null"
            )
        tags = {int(tag) for tag in SPEAKER_TAG.findall(words)}
        if tags - {number}:
            raise DataError(
                f"the transcript of speaker {number}'s clip has the tag [S{min(tags - {number})}]; give the "
                "transcripts in speaker order"
            )
        before += words if SPEAKER_TAG.match(words) else f"[S{number}] {words}"
    return merge_speakers(before + text)


def merge_speakers(text: str) -> str:
    """Leave a tag out where its speaker is already speaking."""
    parts = SPEAKER_TAG.split(text)
    merged, current = parts[0], ""
    for number, words in zip(parts[1::2], parts[2::2], strict=True):
        merged += words if number == current else f"[S{number}]{words}"
        current = number
    return merged


_CLEANING = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"[【】《》（）『』「」\"“”_～~]|(?<!\w)[‘’-]|[‘’-](?!\w)", ""),  # decoration; not within a word
        (r"[‘’]", "'"),
        (r"哈{2,}", "[笑]"),
        (r"\bha(?:\s*ha)+\b", "[laugh]"),
        (r"[；：、]|[—―⸺…]+|\.{3,}", "，"),
        (r";|(?<!\d):|:(?!\d)", ","),
        (r"([，。？！,.?!])[，。？！,.?!]+", r"\1"),
        (r"。(?=.)", "，"),
        (r"，\Z", "。"),
        (r",\Z", "."),
    )
)


def clean_dialogue(text: str) -> str:
    """Write a dialogue the way the model saw it in training; optional.

    `[1]` becomes `[S1]`, decoration goes, laughter becomes a tag, pauses within a turn become commas, a turn has one
    full stop at most, and a speaker who goes on is not named again. Addresses and /IPA/ are not protected.

    Source: MOSS-TTS clis/moss_ttsd_app.py @58b20a0 (own rules; hyphens and apostrophes within words stay).
    """
    parts = SPEAKER_TAG.split(re.sub(r"\[(\d+)\]", r"[S\1]", text.replace("\n", " ")))
    tags = ["", *(f"[S{number}]" for number in parts[1::2])]
    cleaned = ""
    for tag, words in zip(tags, parts[::2], strict=True):
        words = words.strip()
        for pattern, replacement in _CLEANING:
            words = pattern.sub(replacement, words).strip()
        cleaned += f"{tag}{words}"
    return merge_speakers(cleaned)


def _start(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
