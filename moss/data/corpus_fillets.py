"""Acted dialogues of a puzzle game, Czech and Dutch: two fish that talk, and many side characters, with effects.

Recordings come from Debian's fillets-ng-data-cs and -nl (`sound/LEVEL/cs/NAME.ogg`), texts from fillets-ng-data
(`script/LEVEL/*dialogs_cs.lua`: `dialogId(NAME, CHARACTER, English)` followed by `dialogStr(text)`).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moss.data.corpus import UNPACKED, Package
from moss.data.files import decode_utf8
from moss.data.sources import Candidate, one_line, safe_id
from moss.errors import DataError

SOURCE = "fillets"
LICENCE = "GPL-2"
LANGUAGES = ("cs", "nl")
TEXTS = Package("fillets-ng-data", "", "transcripts")

_GAME = "usr/share/games/fillets-ng"
_STRING = r'"((?:[^"\\]|\\.)*)"'
_LINE = re.compile(rf"dialogId\(\s*{_STRING}\s*,\s*{_STRING}\s*,\s*{_STRING}\s*\)\s*dialogStr\(\s*{_STRING}\s*\)")
_NOT_SPOKEN = re.compile(r"[\[\]<>()%\\/]")


@dataclass(frozen=True, slots=True)
class _Line:
    character: str
    text: str


def fillets_packages(languages: Sequence[str]) -> list[Package]:
    """The recordings of some languages, and the package with the texts of all."""
    return [*(_recordings(language) for language in languages), TEXTS]


def fillets_languages(root: Path) -> list[str]:
    """The languages whose recordings and texts are unpacked."""
    return [language for language in LANGUAGES if _sounds(root, language).is_dir() and _scripts(root).is_dir()]


def fillets_source(root: Path, languages: Sequence[str] | None = None) -> Iterator[Candidate]:
    """The spoken lines of the unpacked packages, in the order of their names.

    Speakers are the characters of the game: `cs-small` and `cs-big` are the two fish, others carry the name of their
    font in a level, since the same font speaks with other voices elsewhere. Lines that hold brackets, paths or blanks
    to fill in are left out, and so are recordings without a line.

    Args:
        root: The folder that `fetch` filled.
        languages: "cs", "nl" or both; None takes all that are there.

    Raises:
        DataError: A script that is not UTF-8.
    """
    for language in languages or fillets_languages(root):
        lines: dict[str, dict[str, _Line]] = {}
        sounds = _sounds(root, language)
        for audio in sorted(sounds.rglob("*.ogg")):
            level = audio.relative_to(sounds).parts[0]
            if level not in lines:
                lines[level] = _lines(_scripts(root) / level, language)
            yield _candidate(audio, sounds, language, lines[level].get(audio.stem))


def _candidate(audio: Path, sounds: Path, language: str, line: _Line | None) -> Candidate:
    relative = audio.relative_to(sounds)
    if line is None or not line.text:
        left_out = "recording without a transcript"
    else:
        left_out = "not speech" if _NOT_SPOKEN.search(line.text) else ""
    character = line.character if line else ""
    if character not in ("small", "big"):
        character = f"{relative.parts[0]}-{character or 'unknown'}"
    return Candidate(
        id=safe_id(f"{SOURCE}/{relative.with_suffix('').as_posix()}"),
        audio=audio,
        text=line.text if line else "",
        language=language,
        speaker=f"{language}-{character}",
        licence=LICENCE,
        source=SOURCE,
        left_out=left_out,
    )


def _lines(folder: Path, language: str) -> dict[str, _Line]:
    """The lines of a level by their names."""
    found = {}
    for path in sorted(folder.glob(f"*dialogs_{language}.lua")):
        for name, font, _, text in _LINE.findall(decode_utf8(path.read_bytes(), str(path))):
            spoken = one_line(text.replace('\\"', '"').replace("\\n", " "))
            found[name] = _Line(font.removeprefix("font_"), spoken)
    return found


def _recordings(language: str) -> Package:
    if language not in LANGUAGES:
        raise DataError(f"unknown language {language!r}; {SOURCE} has {' '.join(LANGUAGES)}")
    return Package(f"fillets-ng-data-{language}", language, "recordings")


def _sounds(root: Path, language: str) -> Path:
    return root / UNPACKED / _recordings(language).name / _GAME / "sound"


def _scripts(root: Path) -> Path:
    return root / UNPACKED / TEXTS.name / _GAME / "script"
