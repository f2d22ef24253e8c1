"""One process at a time writes in a run folder."""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from moss.errors import CheckpointError

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a run folder, which is made if need be; the kernel lets go of it when the process ends, however it ends.

    Raises:
        CheckpointError: Another process, or another training of this one, holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "a process that is just starting"
            raise CheckpointError(
                f"{folder}: is being written by {holder}; wait until it ends, or stop it and start again"
            ) from None
        except OSError as error:
            logger.warning("%s: cannot be locked (%s); start no second run in it", folder, error.strerror)
        else:
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        try:
            yield
        finally:
            # Workers that outlive this training hold the file open as well.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)
