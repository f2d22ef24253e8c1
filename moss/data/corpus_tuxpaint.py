"""Spoken descriptions of drawing stamps: children and adults, one short phrase each, most of them at 44.1 kHz.

Debian's tuxpaint-stamps-default holds, beside each stamp, `NAME.txt` (the English description, then one line
`fr.utf8=...` per language) and recordings of it: `NAME_desc_fr.ogg`, `NAME_desc.ogg` (English), and for digits and
letters `NAME_fr.ogg`. `NAME.ogg` is the sound of the thing itself and no speech.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from moss.data.corpus import EFFECTS, UNPACKED
from moss.data.files import decode_utf8, sha256_file
from moss.data.sources import Candidate, one_line, safe_id

SOURCE = "tuxpaint"
LICENCE = "GPL-2"
LANGUAGES = (
    *("be", "bg", "ca", "da", "de", "el", "en", "es", "fr", "it", "ja", "ko"),
    *("lt", "ml", "nb", "nl", "nn", "pt", "ro", "ru", "sl", "sv", "zh"),
)
"""Two-letter codes; nine of them have more than three hundred phrases."""

_SPOKEN = re.compile(r"(?P<stamp>.+?)(?P<described>_desc)?(?:_(?P<code>[a-z]{2}(?:_[A-Za-z]{2})?))?")
_SUFFIXES = {".ogg", ".wav"}
_BRACKETS = re.compile(r"[\[\]<>()]")


def stamps_folder(root: Path) -> Path:
    """Where the stamps lie when the package is unpacked."""
    return root / UNPACKED / EFFECTS.name / "usr/share/tuxpaint/stamps"


def tuxpaint_languages(root: Path) -> list[str]:
    """The languages that are there: all of them, or none, since they come in one package."""
    return list(LANGUAGES) if stamps_folder(root).is_dir() else []


def tuxpaint_source(root: Path, languages: Sequence[str] | None = None) -> Iterator[Candidate]:
    """The spoken descriptions of the unpacked package, in the order of their names.

    A description with brackets says more, or less, than is spoken: it is left out, and so are recordings whose language
    has no description and repetitions of one recording for several stamps. Speakers are not named in the package: the
    recordings of a language go by one name (`stamps-fr`), although several people lent their voices to some.

    Args:
        root: The folder that `fetch` filled.
        languages: Two-letter codes; None takes all.
    """
    stamps = stamps_folder(root)
    seen: set[tuple[str, str]] = set()
    for audio in sorted(path for path in stamps.rglob("*") if path.suffix in _SUFFIXES):
        found = _SPOKEN.fullmatch(audio.stem)
        if found is None or not (found["described"] or found["code"]):
            continue
        code = found["code"] or "en"
        language = code[:2]
        if language not in LANGUAGES or (languages and language not in languages):
            continue
        text = _description(audio.with_name(found["stamp"] + ".txt"), code)
        recording = (language, sha256_file(audio))
        left_out = "recording without a transcript" if not text else "text with brackets" * bool(_BRACKETS.search(text))
        if not left_out and recording in seen:
            left_out = "the same recording again"
        seen.add(recording)
        yield Candidate(
            id=safe_id(f"{SOURCE}/{audio.relative_to(stamps).with_suffix('').as_posix()}"),
            audio=audio,
            text=text,
            language=language,
            speaker=f"stamps-{language}",
            licence=LICENCE,
            source=SOURCE,
            left_out=left_out,
        )


def _description(path: Path, code: str) -> str:
    """What a stamp is called in a language (regions fall back to it), or empty."""
    if not path.is_file():
        return ""
    first, *others = decode_utf8(path.read_bytes(), str(path)).splitlines() or [""]
    texts = {"en": one_line(first)}
    for line in others:
        name, equals, text = line.partition(".utf8=")
        if equals:
            texts[name.strip().lower()] = one_line(text)
    return texts.get(code.lower()) or texts.get(code[:2]) or ""
