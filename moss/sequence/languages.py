"""The languages of the published models: codes, and English names as prompts spell them.

Source: MOSS-TTS README.md, supported languages @58b20a0.
"""

from moss.errors import DataError

LANGUAGES_V1: dict[str, str] = {
    "ar": "Arabic",
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fa": "Persian (Farsi)",
    "fr": "French",
    "he": "Hebrew",
    "hu": "Hungarian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "sv": "Swedish",
    "tr": "Turkish",
    "zh": "Chinese",
}
"""The 20 languages of MOSS-TTS 1.0, TTSD and Realtime."""

LANGUAGES_V15: dict[str, str] = {
    "fi": "Finnish",
    "hi": "Hindi",
    "mk": "Macedonian",
    "ms": "Malay",
    "nl": "Dutch",
    "ro": "Romanian",
    "sw": "Swahili",
    "th": "Thai",
    "tl": "Tagalog",
    "vi": "Vietnamese",
    "yue": "Cantonese",
}
"""The 11 that MOSS-TTS v1.5 and Local v1.5 add."""

LANGUAGES: dict[str, str] = LANGUAGES_V1 | LANGUAGES_V15
"""All 31."""

_OTHER_NAMES = {"persian": "fa", "farsi": "fa", "mandarin": "zh"}
_CODES = {name.lower(): code for code, name in LANGUAGES.items()} | _OTHER_NAMES


def language_name(code_or_name: str, strict: bool = True) -> str:
    """The English name that a prompt spells.

    Args:
        code_or_name: A code ("fr", "pt-BR", "zh_CN") or a name ("French"), in any case.
        strict: Refuse what is in no list; otherwise it is passed on as it is.

    Raises:
        DataError: An unknown language.
    """
    wanted = code_or_name.strip().lower()
    code = _CODES.get(wanted, wanted)
    name = LANGUAGES.get(code) or LANGUAGES.get(code.replace("_", "-").partition("-")[0])
    if name is not None:
        return name
    if strict:
        raise DataError(
            f"language {code_or_name!r} is unknown; give one of {', '.join(sorted(LANGUAGES))} or its English name"
        )
    return code_or_name


def language_code(code_or_name: str, strict: bool = True) -> str:
    """The code of a language, from its code or its English name.

    Raises:
        DataError: An unknown language, if `strict`.
    """
    name = language_name(code_or_name, strict)
    return _CODES.get(name.lower(), code_or_name)
