"""Where recordings with texts come from: a folder, and a Seed-TTS `meta.lst`. Others have files of their own.

A source yields one `Candidate` per recording it knows of, also the ones it cannot use: those carry the reason. It
never decodes audio.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moss.data.audio import AUDIO_SUFFIXES
from moss.data.files import decode_utf8
from moss.errors import DataError

_UNSAFE = re.compile(r"[^\w+=@-]")
_MAX_ID_BYTES = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A recording that may become an utterance."""

    id: str
    audio: Path | None
    """None for an evaluation request without a recording of its own."""
    text: str
    language: str
    speaker: str = ""
    licence: str = ""
    source: str = ""
    references: tuple[Path, ...] = ()
    """Recordings the utterance points to; they must be usable too."""
    extra: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    """Why the source itself says that this cannot be used; goes to quarantine."""
    left_out: str = ""
    """Why it is no speech to train on although nothing is wrong with it, such as a beep; only counted."""


def safe_id(name: str) -> str:
    """An id that can name a shard member: "/" becomes "__", other odd characters "_", and a hash keeps it unique."""
    flat = name.replace("/", "__")
    safe = _UNSAFE.sub("_", flat)
    if safe == flat and len(safe.encode()) <= _MAX_ID_BYTES:
        return safe
    shortened = safe.encode()[:_MAX_ID_BYTES].decode(errors="ignore")
    return f"{shortened}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def one_line(text: str) -> str:
    """The text with every run of white space as one blank."""
    return " ".join(text.split())


def folder_source(folder: Path, *, language: str, speaker: str = "", licence: str = "") -> Iterator[Candidate]:
    """Audio files below a folder, each with its text in a `.txt` of the same name beside it.

    Args:
        folder: Searched with its subfolders.
        language: Two-letter code of all texts.
        speaker: Of recordings that lie in the folder itself; in a subfolder, the first subfolder's name is the speaker.
        licence: Of all recordings.

    Raises:
        DataError: No such folder, or no audio in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; name one that holds audio files and their .txt files")
    audio_files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file())
    if not audio_files:
        raise DataError(f"no audio below {folder}; expected files ending in {' '.join(sorted(AUDIO_SUFFIXES))}")
    for audio in audio_files:
        relative = audio.relative_to(folder)
        text, problem = _text_beside(audio)
        yield Candidate(
            id=safe_id(relative.with_suffix("").as_posix()),
            audio=audio,
            text=text,
            language=language,
            speaker=relative.parts[0] if len(relative.parts) > 1 else speaker,
            licence=licence,
            source="folder",
            problem=problem,
        )


def meta_lst_source(path: Path, *, language: str) -> Iterator[Candidate]:
    """The lines of a Seed-TTS list: `|`-separated, the number of fields decides their meaning.

    5: utterance, prompt text, prompt wav, text, wav. 4: the same without the wav, which is then looked for as
    `wavs/<utterance>.wav` beside the list. 3: utterance, text, prompt wav (another order). The utterance's recording is
    the target wav where there is one, else none (an evaluation request); the prompt goes to extra as `reference` and
    `reference_text`.

    Raises:
        DataError: Missing file, a line that is not UTF-8, or another number of fields; names `path:line`.

    Source: seed-tts-eval get_wav_res_ref_text.py (field counts). Differs: another number of fields is an error.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    for number, raw in enumerate(lines, 1):
        if raw.strip():
            yield _meta_line(decode_utf8(raw, f"{path}:{number}").strip(), path, number, language)


def _meta_line(line: str, path: Path, number: int, language: str) -> Candidate:
    fields = line.split("|")
    if len(fields) == 5:
        name, prompt_text, prompt_wav, text, target = fields
    elif len(fields) == 4:
        name, prompt_text, prompt_wav, text = fields
        target = f"wavs/{name}.wav"
    elif len(fields) == 3:
        name, text, prompt_wav = fields
        name, prompt_text = name.removesuffix(".wav"), ""
        target = f"wavs/{name}.wav"
    else:
        raise DataError(
            f"{path}:{number}: {len(fields)} fields separated by '|', expected 5 (utterance|prompt text|prompt wav|"
            "text|wav), 4 (without the wav) or 3 (utterance|text|prompt wav)"
        )
    audio = path.parent / target
    reference = path.parent / prompt_wav
    named = len(fields) == 5
    return Candidate(
        id=safe_id(name),
        audio=audio if named or audio.is_file() else None,
        text=one_line(text),
        language=language,
        source="meta-lst",
        references=(reference,),
        extra={"reference": [str(reference)], "reference_text": prompt_text, "original_id": name},
    )


def _text_beside(audio: Path) -> tuple[str, str]:
    """Text and problem of the `.txt` beside a recording; one of the two is empty."""
    text_file = audio.with_suffix(".txt")
    try:
        return one_line(decode_utf8(text_file.read_bytes(), f"text {text_file.name}")), ""
    except FileNotFoundError:
        return "", f"no text: {text_file.name} is missing"
    except OSError as error:
        return "", f"text {text_file.name} cannot be read: {error.strerror}"
    except DataError as error:
        return "", str(error)
