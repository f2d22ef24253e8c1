"""How a command line ends: what the user caused is one line on stderr and an exit code, never a traceback."""

import os
import sys
from collections.abc import Callable, Sequence

from moss.errors import MossError

INTERRUPTED = 130


def run_command(main: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    A `MossError` becomes one line and its own code; Ctrl-C becomes one line and 130; a closed pipe on stdout ends
    quietly. Anything else is a bug and keeps its traceback.
    """
    try:
        main(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except MossError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: finished work is kept; start the same command again to go on\n")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0
