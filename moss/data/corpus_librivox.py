"""Five sentences of an English audio book, read by one volunteer: a small check, from pocketsphinx-testdata."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from moss.data.corpus import UNPACKED, Package, documents_folder, licence_of
from moss.data.files import decode_utf8
from moss.data.sources import Candidate, one_line, safe_id

SOURCE = "librivox"
LANGUAGES = ("en",)
PACKAGE = Package("pocketsphinx-testdata", "en", "recordings")
SPEAKER = "librivox-austen"
"""The reader of the book; the package does not name her."""

_LINE = re.compile(r"<s>(?P<text>.*)</s>\s*\((?P<name>[^)]+)\)")


def librivox_languages(root: Path) -> list[str]:
    """English, where the package is unpacked."""
    return list(LANGUAGES) if _folder(root).is_dir() else []


def librivox_source(root: Path, languages: Sequence[str] | None = None) -> Iterator[Candidate]:
    """The sentences of the unpacked package, in the order of its transcripts (lower case, no punctuation).

    Args:
        root: The folder that `fetch` filled.
        languages: "en" or None; another leaves nothing.
    """
    if languages and LANGUAGES[0] not in languages:
        return
    folder = _folder(root)
    licence = licence_of((documents_folder(root, PACKAGE) / "copyright").read_text(encoding="utf-8"), LANGUAGES[0])
    path = folder / "transcription"
    for found in _LINE.finditer(decode_utf8(path.read_bytes(), str(path))):
        audio = folder / f"{found['name']}.wav"
        yield Candidate(
            id=safe_id(f"{SOURCE}/{found['name']}"),
            audio=audio if audio.is_file() else None,
            text=one_line(found["text"]),
            language=LANGUAGES[0],
            speaker=SPEAKER,
            licence=licence,
            source=SOURCE,
            left_out="" if audio.is_file() else "transcript without a recording",
        )


def _folder(root: Path) -> Path:
    return root / UNPACKED / PACKAGE.name / "usr/share/pocketsphinx/test/data/librivox"
