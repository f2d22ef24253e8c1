"""Which folder a run lives in, and what is written down about it before its first step."""

import hashlib
import json
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from moss.config.schema import to_plain
from moss.config.train import TrainConfig

_NOT_IDENTITY = ("runs_dir", "name", "logger")
"""Sections that change where a run is written or shown, not what it computes."""

_PACKAGES = ("torch", "lightning", "transformers", "numpy", "hydra-core", "moss")


def run_id(config: TrainConfig) -> str:
    """Eight hex digits that two configurations share exactly when they compute the same thing."""
    plain = {key: value for key, value in to_plain(config).items() if key not in _NOT_IDENTITY}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]


def run_folder(config: TrainConfig) -> Path:
    """`<runs_dir>/<name>-<run id>`: the same resolved configuration always gives the same folder."""
    return config.runs_dir / f"{config.name}-{run_id(config)}"


def provenance() -> dict[str, Any]:
    """Versions, machine and code state, for a record beside results."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "git": _git_state(),
        "command": sys.argv,
    }


def _git_state() -> dict[str, Any] | None:
    """Commit and whether the tree differs from it; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit.stdout.strip(), "modified": bool(status.stdout.strip())}
