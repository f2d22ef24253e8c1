"""The sources by the names they have on the command line, and their defaults."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from moss.data.corpora import CORPORA, fetched_source
from moss.data.source_openmoss import openmoss_source
from moss.data.sources import Candidate, folder_source, meta_lst_source
from moss.errors import DataError

FETCHED = "fetched"
SOURCES = (FETCHED, *CORPORA, "folder", "openmoss-jsonl", "meta-lst")

_LIMITS_S = dict.fromkeys((FETCHED, *CORPORA), (0.8, 12.0))
_LISTED_LANGUAGES = ("en", "zh")


class SourceOptions(Protocol):
    """What a command line says about its source."""

    source: str
    root: Path
    input: Path | None
    languages: Sequence[str] | None
    language: str
    speaker: str
    licence: str


def duration_limits(source: str, shortest_s: float | None, longest_s: float | None) -> tuple[float, float]:
    """Shortest and longest wanted duration; None takes the default of the source."""
    default_shortest_s, default_longest_s = _LIMITS_S.get(source, (0.0, float("inf")))
    return (
        default_shortest_s if shortest_s is None else shortest_s,
        default_longest_s if longest_s is None else longest_s,
    )


def candidates(options: SourceOptions) -> Iterator[Candidate]:
    """The candidates of the chosen source.

    Raises:
        DataError: An option is missing that the source needs, or as the source says.
    """
    if options.source == FETCHED:
        return fetched_source(options.root, options.languages)
    if options.source in CORPORA:
        return CORPORA[options.source].source(options.root, options.languages)
    if options.input is None:
        raise DataError(f"--source {options.source} needs --input: the folder or file to read")
    if options.source == "openmoss-jsonl":
        return openmoss_source(options.input, language=options.language, licence=options.licence)
    if options.source == "meta-lst":
        # The published lists lie in folders named after their language.
        parent = options.input.absolute().parent.name
        language = options.language or (parent if parent in _LISTED_LANGUAGES else "")
        return meta_lst_source(options.input, language=language)
    if not options.language:
        raise DataError("--source folder needs --language, the two-letter code of the texts")
    return folder_source(options.input, language=options.language, speaker=options.speaker, licence=options.licence)
