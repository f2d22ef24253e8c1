"""Turn a plain mapping into frozen dataclasses and report everything that is wrong with it at once.

What is not here: Hydra. This module sees dicts and dataclasses only, so that a test, a notebook and the command
line validate a configuration in exactly the same way.
"""

import dataclasses
import difflib
import enum
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

from moss.errors import ConfigError

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def section(cls: type[T]) -> type[T]:
    """Declare a settings section: a dataclass that is frozen, keyword-only and slotted.

    A section may define `validate(self) -> list[str]`; each message starts with the name of the field it is about.
    A base section may set `discriminator` (a field name) and `variants` (value of that field -> subclass).
    """
    return dataclasses.dataclass(frozen=True, kw_only=True, slots=True)(cls)


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build the section `cls` from a plain mapping.

    Args:
        cls: A class made with `section`.
        values: Keys and plain values; missing keys take the dataclass defaults.

    Raises:
        ConfigError: Lists every unknown key, wrong type and failed rule, each with its dotted path.
    """
    problems: list[str] = []
    result = _build_section(cls, values, "", problems)
    if problems:
        raise ConfigError(format_problems(problems))
    assert isinstance(result, cls)
    return result


def format_problems(problems: list[str]) -> str:
    """One numbered line per problem, under a headline with their number."""
    noun = "mistake" if len(problems) == 1 else "mistakes"
    lines = [f"{len(problems)} {noun} in the configuration:"]
    lines += [f"  {i}. {problem}" for i, problem in enumerate(problems, 1)]
    return "\n".join(lines)


def check(cls: type, values: Mapping[str, Any]) -> list[str]:
    """All problems that `build` would raise, as a list."""
    problems: list[str] = []
    _build_section(cls, values, "", problems)
    return problems


def below_one(settings: Any, names: Iterable[str]) -> list[str]:
    """What `validate` says of fields that must be at least 1 and are not."""
    return [f"{n}: must be at least 1, got {getattr(settings, n)}" for n in names if getattr(settings, n) < 1]


def to_plain(value: Any) -> Any:
    """A section as plain dicts, lists, numbers and strings (paths and enums become strings)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def defaults(cls: type) -> dict[str, Any]:
    """Default values of a section as a plain dict; fields without a default are left out."""
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            plain[field.name] = to_plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            plain[field.name] = to_plain(field.default_factory())
    return plain


def _build_section(cls: type, values: Any, path: str, problems: list[str]) -> Any:
    before = len(problems)
    if not isinstance(values, Mapping):
        problems.append(f"{path or 'the configuration'}: expected a group of settings, got {values!r}")
        return None
    chosen = _variant(cls, values, path, problems)
    if chosen is None:
        return None
    hints = typing.get_type_hints(chosen)
    known = {field.name: field for field in dataclasses.fields(chosen)}
    for key in values:
        if key not in known:
            problems.append(_unknown_key(str(key), list(known), path))
    arguments = {}
    for name, field in known.items():
        where = f"{path}.{name}" if path else name
        if name in values:
            arguments[name] = _convert(hints[name], values[name], where, problems)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{where}: is required, but not set")
    if len(problems) > before:
        return None
    result = chosen(**arguments)
    validate = getattr(result, "validate", None)
    if validate is not None:
        problems.extend(f"{path}.{message}" if path else message for message in validate())
    return result


def _variant(cls: type, values: Mapping[str, Any], path: str, problems: list[str]) -> type | None:
    """The subclass that the discriminator of `cls` names, `cls` itself where it has none."""
    discriminator = getattr(cls, "discriminator", None)
    variants: dict[str, type] | None = getattr(cls, "variants", None)
    if discriminator is None or not variants:
        return cls
    if cls in variants.values():
        return cls
    value = values.get(discriminator)
    if str(value) not in variants:
        where = f"{path}.{discriminator}" if path else discriminator
        problems.append(f"{where}: expected one of {', '.join(variants)}, got {value!r}")
        return None
    return variants[str(value)]


def _unknown_key(key: str, known: list[str], path: str) -> str:
    where = f"{path}.{key}" if path else key
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else f"; this section has {', '.join(known)}"
    return f"{where}: no such setting{hint}"


def _convert(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _convert_optional(kind, value, path, problems)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            problems.append(f"{path}: expected a list, got {value!r}")
            return None
        item = typing.get_args(kind)[0]
        items = [_convert(item, entry, f"{path}[{i}]", problems) for i, entry in enumerate(value)]
        return items if origin is list else tuple(items)
    if origin is dict:
        if not isinstance(value, Mapping):
            problems.append(f"{path}: expected a mapping, got {value!r}")
            return None
        item = typing.get_args(kind)[1]
        return {str(key): _convert(item, entry, f"{path}.{key}", problems) for key, entry in value.items()}
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        return _build_section(kind, value, path, problems)
    return _convert_scalar(kind, value, path, problems)


def _convert_optional(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    choices = [choice for choice in typing.get_args(kind) if choice is not type(None)]
    if value is None and len(choices) < len(typing.get_args(kind)):
        return None
    assert len(choices) == 1, f"{kind}: only `X | None` is supported"
    return _convert(choices[0], value, path, problems)


def _convert_scalar(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        words = [str(member.value) for member in kind]
        if str(value) not in words:
            near = difflib.get_close_matches(str(value), words, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            problems.append(f"{path}: expected one of {', '.join(words)}, got {value!r}{hint}")
            return None
        return kind(str(value))
    if kind is Path:
        if isinstance(value, str | Path) and str(value):
            return Path(value)
    elif kind is bool:
        if isinstance(value, bool):
            return value
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif kind is str:
        if isinstance(value, str):
            return value
    else:
        raise AssertionError(f"{path}: settings of type {kind} are not supported")
    words_of = {Path: "a path", bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    is_bare_number = kind is str and isinstance(value, int | float) and not isinstance(value, bool)
    # A shell takes one pair of quotes away, YAML wants another.
    hint = "; a text of digits wants quotes, on the command line '\"...\"'" if is_bare_number else ""
    problems.append(f"{path}: expected {words_of[kind]}, got {value!r}{hint}")
    return None
