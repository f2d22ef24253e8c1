"""Fetch the embedded corpora: human speech with transcripts from Debian packages.

Sources: asterisk (en fr it es ru, 11 MB each), tuxpaint (23 languages, 161 MB), fillets (cs nl, 142 MB), librivox
(English, 2 MB).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from moss.command import run_command


def main(arguments: Sequence[str]) -> None:
    """Download, unpack, record licences, say what is there."""
    from moss.data.audio import AUDIO_SUFFIXES
    from moss.data.corpora import CORPORA, DEFAULT_SOURCES
    from moss.data.fetch import download_with_apt, fetch, from_folder

    parser = argparse.ArgumentParser(prog="00_fetch_speech.py", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("data/speech"), help="data folder (default: %(default)s)")
    parser.add_argument("--languages", nargs="+", metavar="LANGUAGE", help="default: all that the sources have")
    parser.add_argument(
        "--sources",
        nargs="+",
        default=list(DEFAULT_SOURCES),
        metavar="SOURCE",
        help=f"of {' '.join(CORPORA)}; default: {' '.join(DEFAULT_SOURCES)}",
    )
    parser.add_argument("--effects", action="store_true", help="also sound effects (tuxpaint-stamps-default, 161 MB)")
    parser.add_argument("--deb-dir", type=Path, help="take the packages from this folder instead of the network")
    options = parser.parse_args(arguments)
    download = from_folder(options.deb_dir) if options.deb_dir else download_with_apt
    folders = fetch(options.root, options.languages, download, options.effects, options.sources)
    recordings = sum(path.suffix in AUDIO_SUFFIXES for folder in folders for path in folder.rglob("*.*"))
    sys.stdout.write(
        f"{recordings} recordings of {' '.join(options.sources)} below {options.root}\n"
        f"licences: {options.root / 'LICENSES.md'}\n"
        f"next: data_prep/01_manifest.py --root {options.root}\n"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
