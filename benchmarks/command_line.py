"""How a benchmark shows the command that made its numbers."""

import shlex
from collections.abc import Sequence
from pathlib import Path


def shown(arguments: Sequence[str]) -> str:
    """The words of a command line, with paths that are of one machine only as DIR; those below the folder stay."""
    return shlex.join(_shown(word) for word in arguments)


def _shown(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    path = Path(value)
    if path.is_absolute():
        here = Path.cwd()
        value = str(path.relative_to(here)) if path.is_relative_to(here) else "DIR"
    elif value.startswith(("..", "~")):
        value = "DIR"
    return f"{option}{equals}{value}"
