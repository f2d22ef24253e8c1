"""One small set of real recordings for each member of the family: eight to train on, two held out.

Made from the fetched corpus alone: dialogues are two speakers' clips one after the other, instructions describe the
speaker, sound effects are the recordings that no one speaks in. What is here: choosing, joining, writing manifests.
Not here: fetching, encoding, shards.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moss.data.audio import audio_info, load_audio, write_wav
from moss.data.corpus import EFFECTS, UNPACKED, asterisk_source
from moss.data.files import sha256_file
from moss.data.manifest import Utterance, write_manifest
from moss.data.progress import track
from moss.data.sources import Candidate, safe_id
from moss.data.split import HELDOUT, REFERENCE, TRAIN
from moss.errors import DataError

MEMBERS = ("tts", "ttsd", "voice_generator", "sound_effect", "realtime")
NUM_TRAIN, NUM_HELDOUT = 8, 2
VOICES = {"en": "Allison", "fr": "June", "it": "Carlo", "ru": "IvrvoiceRU"}
"""Speaker of each language."""

_MIXED_RATE_HZ, _PAUSE_S = 16_000, 0.2
_NATIONS = {"en": "English", "fr": "French", "it": "Italian", "ru": "Russian"}
_EFFECTS = (
    "animals/birds/duck",
    "animals/birds/seagull",
    "animals/birds/rooster",
    "animals/mammals/elephant",
    "animals/mammals/equines/horse",
    "animals/mammals/cats/lion",
    "hobbies/music/string/violin",
    "hobbies/music/percussion/drumkit",
    "animals/birds/crow",
    "hobbies/music/percussion/cymbal_crash",
)
"""Recordings of the thing itself (its spoken names lie beside them under `<name>_desc*`)."""


@dataclass(frozen=True, slots=True)
class _Clip:
    """A usable recording of the speech corpus."""

    candidate: Candidate
    duration_s: float
    female: bool


def build_member_sets(root: Path, members: Sequence[str] = MEMBERS) -> dict[str, Path]:
    """Write `<root>/<member>/utterances.jsonl`, and joined recordings beside them.

    Args:
        root: The folder that `data_prep/00_fetch_speech.py --languages en fr it ru --effects` filled.
        members: Which sets.

    Returns:
        The folder of each member.

    Raises:
        DataError: An unknown member, or recordings that are not there; says which command brings them.
    """
    unknown = sorted(set(members) - set(MEMBERS))
    if unknown:
        raise DataError(f"unknown members {unknown}; there are sets for {' '.join(MEMBERS)}")
    builders: dict[str, Callable[[Path], list[Utterance]]] = {
        "tts": _tts,
        "ttsd": _ttsd,
        "voice_generator": _voice_generator,
        "sound_effect": _sound_effect,
        "realtime": _realtime,
    }
    folders = {}
    for member in track(list(members), "building sets", len(members)):
        folder = root / member
        folder.mkdir(parents=True, exist_ok=True)
        write_manifest(folder / "utterances.jsonl", builders[member](root))
        folders[member] = folder
    return folders


def _tts(root: Path) -> list[Utterance]:
    clips = _clips(root, "en", 1.6, 3.2, NUM_TRAIN + NUM_HELDOUT)
    return [_utterance(clip, index) for index, clip in enumerate(clips)]


def _ttsd(root: Path) -> list[Utterance]:
    """Dialogues of two voices: each speaks once, and each has a reference clip that is in no dialogue."""
    count = NUM_TRAIN + NUM_HELDOUT
    first, second = (_clips(root, language, 0.9, 2.2, count + 1) for language in ("fr", "it"))
    references = [_reference(clips[-1]) for clips in (first, second)]
    made = []
    for index, (one, two) in enumerate(zip(first[:count], second[:count], strict=True)):
        name = f"dialogue-{index:02d}"
        path = root / "ttsd" / "audio" / f"{name}.wav"
        _join([one, two], path)
        made.append(
            Utterance(
                id=name,
                audio=os.path.abspath(path),
                text=f"[S1] {one.candidate.text} [S2] {two.candidate.text}",
                language="",
                duration_s=audio_info(path).duration_s,
                sha256=sha256_file(path),
                licence=f"{one.candidate.licence}, {two.candidate.licence}",
                split=_split(index),
                source="asterisk",
                extra={"reference_ids": [reference.id for reference in references]},
            )
        )
    return made + references


def _voice_generator(root: Path) -> list[Utterance]:
    made = []
    for language in VOICES:
        per_voice = 2 if language in ("fr", "it") else 3
        for index, clip in enumerate(_clips(root, language, 1.2, 2.6, per_voice)):
            sex = "woman" if clip.female else "man"
            instruction = (
                f"A {sex} speaks {_NATIONS[language]}: an even, friendly announcement, close to the microphone."
            )
            # The third clip of the two voices that have one is held out.
            utterance = replace(_utterance(clip, index), split=HELDOUT if index == 2 else TRAIN)
            made.append(replace(utterance, extra={"instruction": instruction}))
    return made


def _sound_effect(root: Path) -> list[Utterance]:
    stamps = root / UNPACKED / EFFECTS.name / "usr/share/tuxpaint/stamps"
    made = []
    for index, name in enumerate(_EFFECTS):
        audio, description = stamps / f"{name}.ogg", stamps / f"{name}.txt"
        if not (audio.is_file() and description.is_file()):
            raise DataError(
                f"{audio} or its description is not there; run data_prep/00_fetch_speech.py --root {root} --effects"
            )
        made.append(
            Utterance(
                id=safe_id(name),
                audio=os.path.abspath(audio),
                text="",
                language="",
                duration_s=audio_info(audio).duration_s,
                sha256=sha256_file(audio),
                licence="GPL-2",
                split=_split(index),
                source="tuxpaint",
                extra={"ambient_sound": description.read_text(encoding="utf-8").splitlines()[0].strip()},
            )
        )
    return made


def _realtime(root: Path) -> list[Utterance]:
    """Two spoken turns: a man asks in Italian, the assistant answers in English with the voice of a reference."""
    count = NUM_TRAIN + NUM_HELDOUT
    questions = _clips(root, "it", 0.9, 2.0, count)
    answers = _clips(root, "en", 1.2, 2.6, count + 1)
    # Realtime takes its voice at the level it was recorded.
    reference = replace(_reference(answers[-1]), extra={"as_recorded": True})
    made = []
    for index, (question, answer) in enumerate(zip(questions, answers[:count], strict=True)):
        conversation = f"conversation-{index:02d}"
        for turn, (role, clip) in enumerate((("user", question), ("assistant", answer))):
            extra = {
                "conversation": conversation,
                "turn": turn,
                "role": role,
                "reference_ids": [reference.id],
            }
            utterance = _utterance(clip, index)
            made.append(replace(utterance, id=f"{conversation}-turn{turn:03d}", extra=extra))
    return [*made, reference]


def _clips(root: Path, language: str, shortest_s: float, longest_s: float, count: int) -> list[_Clip]:
    """The first recordings of a voice, in the order of their names, whose length lies between two bounds."""
    found: list[_Clip] = []
    texts = set()
    for candidate in sorted(asterisk_source(root, [language]), key=lambda candidate: candidate.id):
        if candidate.left_out or candidate.audio is None or candidate.text in texts:
            continue
        duration_s = audio_info(candidate.audio).duration_s
        if shortest_s <= duration_s <= longest_s and len(candidate.text.split()) >= 2:
            texts.add(candidate.text)
            sex = candidate.audio.relative_to(root / UNPACKED).parts[5].split("_")[2]
            found.append(_Clip(candidate, duration_s, female=sex == "f"))
        if len(found) == count:
            return found
    raise DataError(
        f"the speech of {language} in {root} has {len(found)} clips of {shortest_s:g} to {longest_s:g} s, {count} are "
        f"needed; run data_prep/00_fetch_speech.py --root {root} again"
    )


def _utterance(clip: _Clip, index: int) -> Utterance:
    candidate = clip.candidate
    assert candidate.audio is not None
    return Utterance(
        id=candidate.id,
        audio=os.path.abspath(candidate.audio),
        text=candidate.text,
        language=candidate.language,
        speaker=candidate.speaker,
        duration_s=clip.duration_s,
        sha256=sha256_file(candidate.audio),
        licence=candidate.licence,
        split=_split(index),
        source=candidate.source,
    )


def _reference(clip: _Clip) -> Utterance:
    utterance = _utterance(clip, 0)
    return replace(utterance, id=f"ref-{utterance.sha256[:16]}", split=REFERENCE)


def _split(index: int) -> str:
    return TRAIN if index < NUM_TRAIN else HELDOUT


def _join(clips: Sequence[_Clip], path: Path) -> None:
    """The clips one after the other, a short pause between them, as 16 kHz mono."""
    pause = np.zeros(round(_PAUSE_S * _MIXED_RATE_HZ), dtype=np.float32)
    parts: list[np.ndarray] = []
    for clip in clips:
        assert clip.candidate.audio is not None
        parts += [pause] * bool(parts) + [load_audio(clip.candidate.audio, _MIXED_RATE_HZ).numpy()]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_wav(path, np.concatenate(parts), _MIXED_RATE_HZ)
