"""How a command line reads sizes and how it ends: what the user caused is one line on stderr, never a traceback."""

import argparse
import os
import string
import sys
from collections.abc import Callable, Sequence

from moss.errors import MossError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
FINISHED_WORK_IS_KEPT = "finished work is kept; start the same command again to go on"

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def run_command(
    main: Callable[[Sequence[str]], int | None],
    arguments: Sequence[str] | None = None,
    interrupted: str = FINISHED_WORK_IS_KEPT,
) -> int:
    """Run a command line and return its exit code: that of `main`, 0 where it returns none.

    A `MossError` becomes one line and its own code; Ctrl-C becomes one line and 130; a closed pipe on stdout ends
    quietly. Anything else is a bug and keeps its traceback.

    Args:
        main: Takes the words of the command line.
        arguments: Those words; None for the program's own.
        interrupted: What the user finds after Ctrl-C.
    """
    try:
        code = main(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except MossError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted: {interrupted}\n")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code or 0


def num_bytes(text: str) -> int:
    """A size on a command line, such as 5GB, 500MB, 2e9 or 2000000000, in bytes; units are powers of 1,000.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    number = text.lower().rstrip(string.ascii_lowercase)
    try:
        size = int(float(number) * _UNITS[text.lower().removeprefix(number)])
    except (KeyError, ValueError, OverflowError):
        size = 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write 5GB, 500MB or a number of bytes")
    return size
