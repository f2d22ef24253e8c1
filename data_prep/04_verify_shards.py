"""Read shards back completely and compare them with their index; exit 3 if anything is wrong, listing all of it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from moss.command import run_command


def main(arguments: Sequence[str]) -> None:
    """Verify each folder, check that they can be mixed, print the summary."""
    from moss.data.shard import open_datasets
    from moss.data.summary import lengths_of_shards, summary_lines
    from moss.data.verify import require_sound, verify_shards

    parser = argparse.ArgumentParser(prog="04_verify_shards.py", description=__doc__)
    parser.add_argument(
        "--shards", type=Path, nargs="+", default=[Path("data/speech/shards")], help="default: data/speech/shards"
    )
    options = parser.parse_args(arguments)
    for folder in options.shards:
        index, problems = verify_shards(folder)
        require_sound(folder, problems)
        lines = [
            *summary_lines(lengths_of_shards(index)),
            f"tokenizer: {index.tokenizer.describe()}   dataset fingerprint: {index.dataset_fingerprint}",
            f"sound: {folder}   shards: {len(index.shards)}   utterances: {index.utterances}   frames: {index.frames}",
        ]
        sys.stdout.write("\n".join(lines) + "\n")
    open_datasets(options.shards)


if __name__ == "__main__":
    sys.exit(run_command(main))
