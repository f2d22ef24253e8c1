"""Measure how each recording sounds and what a recogniser hears in it, and keep the rows that reach your limits.

Start again to go on after a stop. Results lie in <root>/quality.jsonl, recordings that
cannot be measured in <root>/quality_quarantine_<measure>.jsonl.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from moss.command import run_command


def main(arguments: Sequence[str]) -> None:
    """Measure what is not measured yet, then select, if limits are given."""
    from moss.data.quality_measures import DNSMOS, MEASURES, TRANSCRIPT

    parser = argparse.ArgumentParser(prog="06_quality.py", description=__doc__)
    add = parser.add_argument
    add("--root", type=Path, default=Path("data/speech"), help="data folder (default: %(default)s)")
    measures = f"{DNSMOS} (speechmos), {TRANSCRIPT} (Whisper tiny.en, English only), or nothing; default: both"
    add("--measures", nargs="*", metavar="MEASURE", choices=list(MEASURES), default=list(MEASURES), help=measures)
    add("--min-dnsmos", type=float, help="keep clips with at least this overall DNSMOS, 1 to 5")
    add("--max-wer", type=float, help="keep clips whose transcript differs from the text by at most this rate")
    add("--out", type=Path, help="manifest of the kept rows (default: <root>/utterances_filtered.jsonl)")
    add("--workers", type=int, default=1, help="processes, one thread each (default: %(default)s)")
    add("--max-bad-frac", type=float, default=0.05, help="stop above this fraction of bad files (default: %(default)s)")
    options = parser.parse_args(arguments)

    from moss.data.manifest import read_manifest, write_manifest
    from moss.data.quality import FILE_NAME, measure_utterances, read_quality, select_utterances

    utterances = read_manifest(options.root / "utterances.jsonl", needs_text=False)
    journal = options.root / FILE_NAME
    for measure in options.measures:
        done = measure_utterances(
            utterances, journal, measure, workers=options.workers, max_bad_frac=options.max_bad_frac
        )
        sys.stdout.write(
            f"{measure}: measured: {done.measured}   done before: {done.kept}   put aside (bad): {done.quarantined}\n"
        )
    if options.min_dnsmos is not None or options.max_wer is not None:
        out = options.out or options.root / "utterances_filtered.jsonl"
        selection = select_utterances(
            utterances, read_quality(journal), min_dnsmos=options.min_dnsmos, max_wer=options.max_wer
        )
        write_manifest(out, selection.kept)
        sys.stdout.write("\n".join([*selection.lines(), f"written: {out}"]) + "\n")


if __name__ == "__main__":
    sys.exit(run_command(main))
