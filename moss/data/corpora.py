"""The speech that Debian packages hold, by name: which packages each corpus has, and how it is read.

What is here: the table, and reading all that is unpacked below a folder. Not here: the form of each corpus (a module of
its own each), fetching (`fetch.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moss.data import corpus, corpus_fillets, corpus_librivox, corpus_tuxpaint
from moss.data.corpus import UNPACKED, Package, documents_folder, licence_of, voice_of
from moss.data.sources import Candidate
from moss.errors import DataError


@dataclass(frozen=True, slots=True)
class LicenceRow:
    """One line of the list of licences."""

    language: str
    speaker: str
    licence: str
    package: Package


@dataclass(frozen=True, slots=True)
class Corpus:
    """One collection of recordings with texts."""

    name: str
    languages: tuple[str, ...]
    packages: Callable[[Sequence[str]], list[Package]]
    """Of some languages."""
    source: Callable[[Path, Sequence[str] | None], Iterator[Candidate]]
    """The recordings below a folder, of some languages or of all that are there."""
    there: Callable[[Path], list[str]]
    """The languages that are unpacked below a folder."""
    licences: Callable[[Path, Sequence[str]], list[LicenceRow]]
    """Of the languages that are unpacked below a folder."""


def _asterisk_licences(root: Path, languages: Sequence[str]) -> list[LicenceRow]:
    rows = []
    for package in corpus.packages(languages):
        if package.holds == "recordings":
            text = (documents_folder(root, package) / "copyright").read_text(encoding="utf-8")
            voice = voice_of(root, package.language)
            rows.append(LicenceRow(package.language, voice, licence_of(text, package.language), package))
    return rows


def _tuxpaint_licences(root: Path, languages: Sequence[str]) -> list[LicenceRow]:
    return [LicenceRow(" ".join(languages), "several, and sound effects", corpus_tuxpaint.LICENCE, corpus.EFFECTS)]


def _fillets_licences(root: Path, languages: Sequence[str]) -> list[LicenceRow]:
    return [
        LicenceRow(package.language or "texts", "characters of a game", corpus_fillets.LICENCE, package)
        for package in corpus_fillets.fillets_packages(languages)
    ]


def _librivox_licences(root: Path, languages: Sequence[str]) -> list[LicenceRow]:
    text = (documents_folder(root, corpus_librivox.PACKAGE) / "copyright").read_text(encoding="utf-8")
    licence = licence_of(text, languages[0])
    return [LicenceRow(languages[0], corpus_librivox.SPEAKER, licence, corpus_librivox.PACKAGE)]


CORPORA: dict[str, Corpus] = {
    found.name: found
    for found in (
        Corpus(
            corpus.SOURCE,
            corpus.LANGUAGES,
            corpus.packages,
            corpus.asterisk_source,
            corpus.asterisk_languages,
            _asterisk_licences,
        ),
        Corpus(
            corpus_tuxpaint.SOURCE,
            corpus_tuxpaint.LANGUAGES,
            lambda languages: [corpus.EFFECTS],
            corpus_tuxpaint.tuxpaint_source,
            corpus_tuxpaint.tuxpaint_languages,
            _tuxpaint_licences,
        ),
        Corpus(
            corpus_fillets.SOURCE,
            corpus_fillets.LANGUAGES,
            corpus_fillets.fillets_packages,
            corpus_fillets.fillets_source,
            corpus_fillets.fillets_languages,
            _fillets_licences,
        ),
        Corpus(
            corpus_librivox.SOURCE,
            corpus_librivox.LANGUAGES,
            lambda languages: [corpus_librivox.PACKAGE],
            corpus_librivox.librivox_source,
            corpus_librivox.librivox_languages,
            _librivox_licences,
        ),
    )
}
"""By the names that command lines use."""

DEFAULT_SOURCES = (corpus.SOURCE,)


def packages_of(sources: Sequence[str], languages: Sequence[str] | None = None) -> list[Package]:
    """The packages of some corpora, each once.

    Args:
        sources: Names in `CORPORA`.
        languages: Two-letter codes; None takes all that each corpus has. A corpus that has none of them is an error.

    Raises:
        DataError: An unknown corpus or language, none, or a corpus without any of the languages.
    """
    unknown = sorted(set(sources) - set(CORPORA))
    if unknown or not sources:
        raise DataError(f"unknown sources {unknown}; there are {' '.join(CORPORA)}")
    chosen = [CORPORA[name] for name in sources]
    if languages is not None:
        had = dict.fromkeys(language for each in chosen for language in each.languages)
        missing = sorted(set(languages) - set(had))
        if missing or not languages:
            raise DataError(f"unknown languages {missing}; the embedded corpus has {' '.join(had)}")
    found: list[Package] = []
    for each in chosen:
        wanted = each.languages if languages is None else [code for code in languages if code in each.languages]
        if not wanted:
            raise DataError(f"the source {each.name} has none of {languages}; it has {' '.join(each.languages)}")
        found += each.packages(wanted)
    return list(dict.fromkeys(found))


def fetched_source(root: Path, languages: Sequence[str] | None = None) -> Iterator[Candidate]:
    """The recordings of every corpus that is unpacked below `root`, corpus after corpus.

    Raises:
        DataError: There is none, or none with one of the languages.
    """
    there = {name: each.there(root) for name, each in CORPORA.items()}
    missing = sorted(set(languages or ()) - {code for codes in there.values() for code in codes})
    if missing or not any(there.values()):
        raise DataError(
            f"the speech of {' '.join(missing) or 'the embedded corpus'} is not in {root / UNPACKED}; run "
            f"data_prep/00_fetch_speech.py --root {root}"
            + (f" --languages {' '.join(missing)}" if missing else "")
            + ", or bring your own with --source folder --input DIR"
        )
    for name, codes in there.items():
        wanted = [code for code in codes if not languages or code in languages]
        if wanted:
            yield from CORPORA[name].source(root, wanted)


def licence_rows(root: Path) -> list[LicenceRow]:
    """What is unpacked below `root`, with its licences."""
    rows = []
    for each in CORPORA.values():
        languages = each.there(root)
        rows += each.licences(root, languages) if languages else []
    return rows
