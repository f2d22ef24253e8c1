"""Files that are complete or absent: atomic writes, hashes and JSON Lines.

Every file of the package is written under a temporary name in its own folder and renamed when it is complete, so
that a kill, a full disk or Ctrl-C never leaves half a file under a real name. Not here: any format above JSON Lines.
"""

import errno
import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moss.errors import DataError

_TEMPORARY_PREFIX = ".tmp-"
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn the write failures a user can cure (full disk, no permission) into a `DataError` naming the file."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise DataError(
                f"no space left on {_file_system_of(path)} while writing {path} ({os.strerror(error.errno)}); "
                "free some space and start again: finished work is kept"
            ) from error
        if error.errno in _NO_PERMISSION:
            raise DataError(
                f"cannot write {path}: {os.strerror(error.errno)}; choose a folder that you may write to"
            ) from error
        raise


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` on success, delete it on any failure.

    The temporary name keeps the suffix of `path`, so writers that choose a format by suffix work. Parent folders are
    made. The content is flushed to the disk before the rename.

    Raises:
        DataError: The disk is full or the folder may not be written to; nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f"{_TEMPORARY_PREFIX}{_process_mark()}-{threading.get_ident()}-{path.name}")
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def remove_leftovers(folder: Path, *, recursive: bool = False) -> int:
    """Delete temporary files that killed processes of this machine left in `folder`; return how many."""
    mark = f"{_TEMPORARY_PREFIX}{socket.gethostname()}-"
    pattern = mark + "*"
    removed = 0
    for leftover in folder.rglob(pattern) if recursive else folder.glob(pattern):
        pid = leftover.name.removeprefix(mark).partition("-")[0]
        if leftover.is_file() and pid.isdigit() and not _is_running(int(pid)):
            leftover.unlink(missing_ok=True)
            removed += 1
    return removed


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def decode_utf8(content: bytes, where: str) -> str:
    """Decode UTF-8 text; a byte order mark at the start is dropped.

    Raises:
        DataError: Names the first byte that is not UTF-8 and its position.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start}; convert the text, "
            "for instance with `iconv -f latin1 -t utf-8`"
        ) from error


def numbered_jsonl(path: Path | str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number (from 1) and object of each line of a JSON Lines file; blank lines are skipped.

    Raises:
        DataError: The file is missing, not UTF-8, or a line is not a JSON object; names `path:line`.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield number, parse_json_object(decode_utf8(line, f"{path}:{number}"), f"{path}:{number}")


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    """All objects of a JSON Lines file.

    Raises:
        DataError: As `numbered_jsonl`.
    """
    return [row for _, row in numbered_jsonl(path)]


def parse_json_object(text: str, where: str) -> dict[str, Any]:
    """Parse one JSON object.

    Raises:
        DataError: Not JSON, or not an object; names `where`.
    """
    try:
        row = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}); expected one JSON object a line") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(row).__name__}")
    return row


def write_jsonl(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON Lines (UTF-8) atomically."""
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def append_jsonl(path: Path | str, row: Mapping[str, Any], *, durable: bool = True) -> None:
    """Append one line to a journal; a line that a kill cut short is ended first.

    Args:
        path: The journal; made if missing.
        row: The line.
        durable: Wait until the line is on the disk. Without it a kill loses nothing, a power cut may.

    Raises:
        DataError: The disk is full; the journal keeps its whole lines.
    """
    path = Path(path)
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: a buffer would write its rest when it is closed, after the failure was mended.
        with open(path, "ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    line = b"\n" + line
            try:
                while line:
                    line = line[file.write(line) :]
                if durable:
                    os.fsync(file.fileno())
            except OSError:
                os.truncate(path, size)
                raise


def read_journal(path: Path | str) -> list[dict[str, Any]]:
    """The whole lines of a journal, lines cut short by a kill left out; none where the file is missing."""
    path = Path(path)
    rows = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _process_mark() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _file_system_of(path: Path) -> str:
    """The mount point that holds `path`, for a message."""
    place = path.absolute().parent
    while not place.exists() and place != place.parent:
        place = place.parent
    while not os.path.ismount(place) and place != place.parent:
        place = place.parent
    return str(place)
