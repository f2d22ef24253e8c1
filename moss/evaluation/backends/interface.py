"""What the scorer asks of a recogniser and of a speaker encoder, and how a backend says exactly which one it is."""

import hashlib
import importlib.util
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moss.errors import EvaluationError

Wave16k = NDArray[np.float32]
"""Mono samples (N,) at 16 kHz."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """Identity of a backend: two equal revisions give equal results on equal input."""

    name: str
    version: str
    settings: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.settings}; sha256 {self.sha256[:12]})"

    def as_dict(self) -> dict[str, str]:
        """The fields as plain strings."""
        return asdict(self)


class Recogniser(Protocol):
    """Speech to text. `transcribe` is called from `workers` threads at once, one clip per call."""

    @property
    def revision(self) -> Revision:
        """Which recogniser this is."""
        ...

    @property
    def workers(self) -> int:
        """How many clips may be transcribed at the same time."""
        ...

    @property
    def languages(self) -> frozenset[str] | None:
        """Language codes it understands; None for any."""
        ...

    def transcribe(self, wave: Wave16k, language: str) -> str:
        """Text of one clip, as the model writes it.

        Raises:
            EvaluationError: the model fails on this clip.
        """
        ...


class SpeakerEncoder(Protocol):
    """Voice to vector. `embed` is called from one thread at a time."""

    @property
    def revision(self) -> Revision:
        """Which encoder this is."""
        ...

    @property
    def metric_label(self) -> str:
        """How its similarity is headed wherever it is printed, such as "SIM (GE2E)"."""
        ...

    def embed(self, wave: Wave16k) -> NDArray[np.float32]:
        """Embedding (width,) of one clip.

        Raises:
            EvaluationError: the clip cannot be embedded.
        """
        ...


def packaged_file(package: str, relative: str, *, sha256: str, install: str) -> Path:
    """Find a weights file inside an installed package, without importing it, and check what it is.

    Args:
        package: Import name of the package.
        relative: Path of the file inside it.
        sha256: The pinned checksum.
        install: The pip line that brings the file.

    Raises:
        EvaluationError: the package or file is missing, or the file is another one than pinned.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise EvaluationError(f"package {package!r} is not installed, so {relative} is missing; run: {install}")
    path = Path(spec.submodule_search_locations[0]) / relative
    if not path.is_file():
        raise EvaluationError(f"{path} is missing from the installed package {package!r}; run: {install}")
    found = _file_sha256(path, path.stat().st_size, path.stat().st_mtime_ns)
    if found != sha256:
        raise EvaluationError(
            f"{path} has sha256 {found}, expected {sha256}: scores from other weights are not comparable; "
            f"run: {install}"
        )
    return path


@lru_cache(maxsize=16)
def _file_sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
