"""Put texts and codes into shards (plain tars that webdataset reads too) with an index."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from moss.command import run_command


def main(arguments: Sequence[str]) -> None:
    """Write the shards of one tokenizer's codes and print the summary."""
    from moss.data.assemble import assemble
    from moss.data.code_store import find_store
    from moss.data.manifest import read_manifest
    from moss.data.shard_writer import write_shards
    from moss.data.summary import lengths_of_shards, summary_lines, write_histogram

    parser = argparse.ArgumentParser(prog="03_write_shards.py", description=__doc__)
    add = parser.add_argument
    add("--root", type=Path, default=Path("data/speech"), help="data folder (default: %(default)s)")
    add("--codes", type=Path, nargs="+", default=[], help="code folder (default: the only one below <root>/codes)")
    add("--out", type=Path, help="shard folder (default: <root>/shards)")
    add("--utterances-per-shard", type=int, default=1024, help="default: %(default)s")
    options = parser.parse_args(arguments)
    folder = options.out or options.root / "shards"
    store = find_store(options.root, options.codes)
    found = assemble(read_manifest(options.root / "utterances.jsonl"), store)
    index = write_shards(folder, found.coded, store.card, options.utterances_per_shard)
    lengths = lengths_of_shards(index)
    write_histogram(folder / "lengths.png", lengths, "utterances in shards")
    lines = [
        *summary_lines(lengths),
        f"put aside while encoding: {found.quarantined}   without a recording: {found.without_recording}",
        f"tokenizer: {index.tokenizer.describe()}   dataset fingerprint: {index.dataset_fingerprint}",
        f"written: shards: {len(index.shards)}, {sum(s.bytes for s in index.shards) / 1e6:.2f} MB, in {folder}",
        f"next: data_prep/04_verify_shards.py --shards {folder}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(run_command(main))
