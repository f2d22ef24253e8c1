"""Fetch the embedded corpus: human speech with transcripts from Debian packages (about 11 MB a language)."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from moss.data.command import run_command


def main(arguments: Sequence[str]) -> None:
    """Download, unpack, record licences, say what is there."""
    from moss.data.corpus import LANGUAGES
    from moss.data.fetch import download_with_apt, fetch, from_folder

    parser = argparse.ArgumentParser(prog="00_fetch_speech.py", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("data/speech"), help="data folder (default: %(default)s)")
    parser.add_argument(
        "--languages", nargs="+", default=list(LANGUAGES), metavar="LANGUAGE", help="default: " + " ".join(LANGUAGES)
    )
    parser.add_argument("--effects", action="store_true", help="also sound effects (tuxpaint-stamps-default, 161 MB)")
    parser.add_argument("--deb-dir", type=Path, help="take the packages from this folder instead of the network")
    options = parser.parse_args(arguments)
    download = from_folder(options.deb_dir) if options.deb_dir else download_with_apt
    folders = fetch(options.root, options.languages, download, options.effects)
    recordings = sum(1 for folder in folders for _ in folder.rglob("*.g722"))
    sys.stdout.write(
        f"{recordings} recordings in {' '.join(options.languages)} below {options.root}\n"
        f"licences: {options.root / 'LICENSES.md'}\n"
        f"next: data_prep/01_manifest.py --root {options.root}\n"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
