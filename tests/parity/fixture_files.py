"""Numbers of the published implementations, from MOSS_PARITY_DIR or the copies under tests/golden/parity."""

import functools
import gzip
import io
import os
from pathlib import Path
from typing import Any

import torch

DEFAULT_FOLDER = Path(__file__).parents[1] / "golden" / "parity"


def fixture_path(name: str) -> Path:
    """Path of a fixture file; a missing one is an error, never a skip."""
    path = Path(os.environ.get("MOSS_PARITY_DIR") or DEFAULT_FOLDER) / name
    if not path.is_file():
        raise FileNotFoundError(f"{path}: fixture is missing; set MOSS_PARITY_DIR to a folder that has it")
    return path


@functools.cache
def load_fixture(name: str) -> dict[str, Any]:
    """The content of a gzipped torch file."""
    fixture = torch.load(io.BytesIO(gzip.decompress(fixture_path(name).read_bytes())), weights_only=True)
    assert isinstance(fixture, dict)
    return fixture
