"""Fetch the embedded corpora: download Debian packages, unpack them, record their licences.

Nothing is installed and nothing is changed outside the data folder, except that the package lists are refreshed when a
download fails for want of them. Every package is complete or absent, so a killed run goes on where it stopped.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from moss.data.corpora import DEFAULT_SOURCES, licence_rows, packages_of
from moss.data.corpus import EFFECTS, Package, documents_folder
from moss.data.files import remove_leftovers, write_bytes
from moss.data.progress import track
from moss.errors import DataError

Download = Callable[[str, Path], None]
"""Puts the .deb of a package, by name, into a folder."""

OWN_SPEECH = (
    "to use your own recordings instead, put audio files and .txt files of the same names into a folder and run "
    "data_prep/01_manifest.py --source folder --input FOLDER --language en"
)

_DEBS = "deb"


def fetch(
    root: Path,
    languages: Sequence[str] | None,
    download: Download,
    effects: bool = False,
    sources: Sequence[str] = DEFAULT_SOURCES,
) -> list[Path]:
    """Download and unpack the packages of some corpora and languages, and write `LICENSES.md`.

    Args:
        root: The data folder; packages go to `deb/`, their content to `unpacked/<package>/`.
        languages: Two-letter codes; None takes all that the corpora have.
        download: Where packages come from: `download_with_apt`, or `from_folder(...)`.
        effects: Also the package of sound effects.
        sources: Names of corpora (`corpora.CORPORA`).

    Returns:
        The unpacked folders.

    Raises:
        DataError: Unknown corpus or language; no apt or dpkg; a download or an archive that fails.
    """
    wanted = list(dict.fromkeys(packages_of(sources, languages) + [EFFECTS] * effects))
    if shutil.which("dpkg") is None:
        raise DataError(f"dpkg is not on this machine, so Debian packages cannot be unpacked; {OWN_SPEECH}")
    (root / _DEBS).mkdir(parents=True, exist_ok=True)
    for folder in (root / _DEBS, root):
        remove_leftovers(folder)
    folders = []
    for package in track(wanted, "fetching speech", len(wanted)):
        folders.append(_unpack(root, package, download))
    write_bytes(root / "LICENSES.md", _licences(root).encode())
    return folders


def download_with_apt(package: str, folder: Path) -> None:
    """`apt-get download`; if that fails, refresh the package lists once and try again.

    Raises:
        DataError: No apt-get here, or the download fails; says what to do.
    """
    if shutil.which("apt-get") is None:
        raise DataError(
            "apt-get is not on this machine; the embedded speech comes as Debian packages. On a Debian or Ubuntu "
            f"machine run `apt-get download {package}` and give the folder with --deb-dir; {OWN_SPEECH}"
        )
    first = _run(["apt-get", "download", package], folder)
    if first.returncode == 0:
        return
    update = _run(["apt-get", "update"], folder)
    second = _run(["apt-get", "download", package], folder)
    if second.returncode:
        reason = _last_line(second.stderr) or _last_line(update.stderr)
        advice = (
            "" if os.geteuid() == 0 else " (refreshing the package lists needs root: run `sudo apt-get update` once)"
        )
        raise DataError(f"apt-get download {package} failed: {reason}{advice}; check the network, or {OWN_SPEECH}")


def from_folder(debs: Path) -> Download:
    """A download that copies packages out of a folder of .deb files, for machines without network."""

    def copy(package: str, folder: Path) -> None:
        found = _deb_of(package, debs)
        if found is None:
            raise DataError(f"{debs} holds no {package}_*.deb; run `apt-get download {package}` there")
        shutil.copyfile(found, folder / found.name)

    return copy


def _unpack(root: Path, package: Package, download: Download) -> Path:
    folder = documents_folder(root, package).parents[3]
    if folder.is_dir():
        return folder
    deb = _deb_of(package.name, root / _DEBS) or _downloaded(root / _DEBS, package.name, download)
    partial = folder.with_name(f".tmp-{package.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        unpacked = _run(["dpkg", "-x", str(deb.absolute()), "."], partial)
        if unpacked.returncode:
            broken = deb.with_name(deb.name + ".broken")
            deb.replace(broken)
            raise DataError(
                f"{deb} cannot be unpacked: {_last_line(unpacked.stderr)}; it was put aside as {broken.name} (is "
                "the disk full?), start again to download a fresh one"
            )
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _downloaded(debs: Path, package: str, download: Download) -> Path:
    """Download into a folder of its own, then rename, so that no half package is ever taken for a whole one."""
    partial = debs / f".tmp-{package}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    # apt drops root for its own user, which must be able to write here.
    partial.chmod(0o777)
    try:
        download(package, partial)
        found = _deb_of(package, partial)
        if found is None:
            raise DataError(f"the download of {package} brought no .deb; {OWN_SPEECH}")
        os.replace(found, debs / found.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return debs / found.name


def _deb_of(package: str, folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob(f"{package}_*.deb"), reverse=True)), None)


def _licences(root: Path) -> str:
    lines = [
        "# Licences of the recordings in this folder",
        "",
        "From Debian packages. Credits, authors and the full licence texts are in the copyright files named below.",
        "Keep this file with copies of the recordings.",
        "",
        "| language | speaker | licence | package | copyright file |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in licence_rows(root):
        deb = _deb_of(row.package.name, root / _DEBS)
        path = documents_folder(root, row.package) / "copyright"
        lines.append(
            f"| {row.language} | {row.speaker} | {row.licence} | {deb.name if deb else row.package.name} | "
            f"{path.relative_to(root)} |"
        )
    return "\n".join(lines) + "\n"


def _run(command: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise DataError(f"{command[0]} is not on this machine; {OWN_SPEECH}") from error


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
