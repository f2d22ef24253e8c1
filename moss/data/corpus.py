"""The default one of the embedded corpora: the spoken prompts of Debian's asterisk-core-sounds packages.

Five languages, four professional voices, about two hours, 16 kHz G.722, with transcripts. What is here: which packages
and voices there are, and how their transcripts are read. Not here: fetching (`fetch.py`).
"""

import gzip
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moss.data.files import decode_utf8
from moss.data.sources import Candidate, one_line, safe_id
from moss.errors import DataError

LANGUAGES = ("en", "fr", "it", "es", "ru")
UNPACKED = "unpacked"
SOURCE = "asterisk"

_NOT_SPEECH = re.compile(r"[\[\]<>()]")


@dataclass(frozen=True, slots=True)
class Package:
    """One Debian package of the corpus."""

    name: str
    language: str
    holds: str
    """"recordings", "transcripts" or "effects"."""


EFFECTS = Package("tuxpaint-stamps-default", "", "effects")
"""Drawing stamps with sounds (161 MB): animals, instruments, household; and their spoken descriptions."""


def packages(languages: Sequence[str]) -> list[Package]:
    """The packages of some languages: recordings and transcripts come apart.

    Raises:
        DataError: An unknown language, or none.
    """
    unknown = sorted(set(languages) - set(LANGUAGES))
    if unknown or not languages:
        raise DataError(f"unknown languages {unknown}; the embedded corpus has {' '.join(LANGUAGES)}")
    found = []
    for language in languages:
        found.append(Package(f"asterisk-core-sounds-{language}-g722", language, "recordings"))
        found.append(Package(f"asterisk-core-sounds-{language}", language, "transcripts"))
    return found


def asterisk_source(root: Path, languages: Sequence[str] | None = None) -> Iterator[Candidate]:
    """The clips of the unpacked corpus below `root`, in the order of the transcripts.

    Lines whose text holds brackets describe a sound or how something is said: they are left out, and so are transcripts
    without a recording and recordings without a transcript.

    Args:
        root: The folder that `fetch` filled.
        languages: Which languages; None takes all that are there.

    Raises:
        DataError: A language is not there, or none is.
    """
    there = asterisk_languages(root)
    wanted = list(languages) if languages else there
    if languages:
        packages(languages)
    missing = [language for language in wanted if language not in there]
    if missing or not wanted:
        raise DataError(
            f"the speech of {' '.join(missing) or 'the embedded corpus'} is not in {root / UNPACKED}; run "
            f"data_prep/00_fetch_speech.py --root {root}"
            + (f" --languages {' '.join(missing)}" if missing else "")
            + ", or bring your own with --source folder --input DIR"
        )
    for language in wanted:
        yield from _language_source(root, language)


def asterisk_languages(root: Path) -> list[str]:
    """The languages that are unpacked below a folder."""
    return [language for language in LANGUAGES if _sounds_folder(root, language) is not None]


def licence_of(copyright_text: str, language: str) -> str:
    """The licence of one language's recordings, from a Debian copyright file; the last matching paragraph wins.

    Raises:
        DataError: No paragraph covers them.
    """
    licence = ""
    pattern = ""
    for line in copyright_text.splitlines():
        if line.startswith("Files:"):
            pattern = line.removeprefix("Files:").strip()
        elif line.startswith("License:") and pattern in ("*", f"{language}-*"):
            licence, pattern = line.removeprefix("License:").strip(), ""
    if not licence:
        raise DataError(
            f"no licence for '{language}' in the package's copyright file; the package has changed its form"
        )
    return licence


def voice_of(root: Path, language: str) -> str:
    """The name of the speaker of a language, or empty when it is not unpacked (folders are named en_US_f_Allison)."""
    folder = _sounds_folder(root, language)
    return folder.name.rpartition("_")[2] if folder is not None else ""


def documents_folder(root: Path, package: Package) -> Path:
    """Where a package's copyright file and transcripts lie."""
    return root / UNPACKED / package.name / "usr/share/doc" / package.name


def _sounds_folder(root: Path, language: str) -> Path | None:
    recordings = packages([language])[0]
    parent = root / UNPACKED / recordings.name / "usr/share/asterisk/sounds"
    return next(iter(sorted(parent.glob(f"{language}_*"))), None)


def _language_source(root: Path, language: str) -> Iterator[Candidate]:
    sounds = _sounds_folder(root, language)
    assert sounds is not None, "asterisk_source checked that the language is there"
    recordings, transcripts = packages([language])
    licence = licence_of((documents_folder(root, recordings) / "copyright").read_text(encoding="utf-8"), language)
    audio_files = {p.relative_to(sounds).with_suffix("").as_posix(): p for p in sounds.rglob("*.g722")}
    described = set()
    for name, text in _transcripts(documents_folder(root, transcripts) / f"core-sounds-{language}.txt.gz"):
        described.add(name)
        audio = audio_files.get(name)
        left_out = "not speech" if _NOT_SPEECH.search(text) else ""
        yield Candidate(
            id=safe_id(f"{language}/{name}"),
            audio=audio,
            text=text,
            language=language,
            speaker=voice_of(root, language),
            licence=licence,
            source=SOURCE,
            left_out=left_out if audio else "transcript without a recording",
        )
    for name in sorted(audio_files.keys() - described):
        yield Candidate(
            id=safe_id(f"{language}/{name}"),
            audio=audio_files[name],
            text="",
            language=language,
            source=SOURCE,
            left_out="recording without a transcript",
        )


def _transcripts(path: Path) -> Iterator[tuple[str, str]]:
    """Name and text of each line `name: text`; lines that start with ";" are comments."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(
            f"{path}: transcripts cannot be read ({error}); run data_prep/00_fetch_speech.py again"
        ) from error
    for line in decode_utf8(content, str(path)).splitlines():
        name, colon, text = line.partition(":")
        if colon and not line.startswith(";"):
            yield name.strip(), one_line(text)
