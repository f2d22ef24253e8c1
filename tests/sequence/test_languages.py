"""31 languages, by code and by name."""

import pytest

from moss.errors import DataError
from moss.sequence.languages import LANGUAGES, LANGUAGES_V1, LANGUAGES_V15, language_code, language_name


def test_sizes() -> None:
    assert (len(LANGUAGES_V1), len(LANGUAGES_V15), len(LANGUAGES)) == (20, 11, 31)
    assert len(set(LANGUAGES.values())) == 31


@pytest.mark.parametrize(("code", "name"), LANGUAGES.items())
def test_code_and_name(code: str, name: str) -> None:
    assert language_name(code) == language_name(name) == language_name(f" {code.upper()} ") == name
    assert language_name(name.upper()) == name
    assert language_code(name) == language_code(code) == code


@pytest.mark.parametrize(
    ("given", "name"),
    [("pt-BR", "Portuguese"), ("zh_CN", "Chinese"), ("Farsi", "Persian (Farsi)"), ("mandarin", "Chinese")],
)
def test_other_spellings(given: str, name: str) -> None:
    assert language_name(given) == name


@pytest.mark.parametrize("unknown", ["klingon", "", "xx"])
def test_unknown(unknown: str) -> None:
    with pytest.raises(DataError, match=rf"language '{unknown}' is unknown; give one of ar, cs, .*, zh or its English"):
        language_name(unknown)
    assert language_name(unknown, False) == unknown
    assert language_code(unknown, False) == unknown
