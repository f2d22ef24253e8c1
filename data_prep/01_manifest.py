"""List recordings with their texts in utterances.jsonl: checked, split by text, bad ones put aside with a reason."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from moss.command import run_command


def main(arguments: Sequence[str]) -> None:
    """Read a source, write the manifest, print the summary."""
    from moss.data.manifest_build import MANIFEST, ManifestSettings, build_manifest
    from moss.data.source_choice import FETCHED, SOURCES, candidates, duration_limits
    from moss.data.summary import lengths_of_manifest, source_lines, summary_lines, write_histogram

    parser = argparse.ArgumentParser(prog="01_manifest.py", description=__doc__)
    add = parser.add_argument
    add("--root", type=Path, default=Path("data/speech"), help="data folder (default: %(default)s)")
    add("--source", choices=SOURCES, default=FETCHED, help="what to read (default: %(default)s, all that was fetched)")
    add("--input", type=Path, help="what --source folder, openmoss-jsonl or meta-lst reads: that folder or file")
    add("--languages", nargs="+", metavar="LANGUAGE", help="of the fetched corpora (default: all that are there)")
    add("--language", default="", help="of the texts, where the source does not say (two letters)")
    add("--speaker", default="", help="where the source does not say")
    add("--licence", default="", help="where the source does not say")
    add("--min-duration-s", type=float, help="leave out shorter ones (default: 0.8 for what was fetched, else 0)")
    add("--max-duration-s", type=float, help="leave out longer ones (default: 12 for what was fetched, else no limit)")
    add("--heldout-frac", type=float, default=0.2, help="fraction of texts never trained on (default: %(default)s)")
    add("--max-bad-frac", type=float, default=0.05, help="stop above this fraction of bad files (default: %(default)s)")
    add("--downmix", action="store_true", help="accept more than two channels, mixed by their mean")
    options = parser.parse_args(arguments)
    shortest_s, longest_s = duration_limits(options.source, options.min_duration_s, options.max_duration_s)
    settings = ManifestSettings(
        min_duration_s=shortest_s,
        max_duration_s=longest_s,
        heldout_frac=options.heldout_frac,
        max_bad_frac=options.max_bad_frac,
        downmix=options.downmix,
    )
    result = build_manifest(options.root, candidates(options), settings)
    lengths = lengths_of_manifest(result.utterances)
    picture = options.root / "utterances_lengths.png"
    write_histogram(picture, lengths, "utterances")
    lines = [
        *summary_lines(lengths),
        *source_lines(result.utterances),
        *result.lines(),
        f"written: {options.root / MANIFEST}, {picture}",
    ]
    sys.stdout.write("\n".join(lines) + f"\nnext: data_prep/02_encode_codes.py --root {options.root}\n")


if __name__ == "__main__":
    sys.exit(run_command(main))
