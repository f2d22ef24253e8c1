"""Make a small set of real recordings for each member of the family, encoded and in shards, from the fetched corpus."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from moss.command import run_command


def main(arguments: Sequence[str]) -> None:
    """Choose and join recordings, encode them, write the shards of every member."""
    parser = argparse.ArgumentParser(prog="05_member_sets.py", description=__doc__)
    add = parser.add_argument
    add("--root", type=Path, default=Path("data/family"), help="folder of 00_fetch_speech.py (default: %(default)s)")
    add("--members", nargs="+", metavar="MEMBER", help="tts ttsd voice_generator sound_effect realtime (default: all)")
    add("--tokenizer", default="mel_rvq", help="name in configs/tokenizer/ or a .yaml file (default: %(default)s)")
    add("--weights", type=Path, help="weights file or checkpoint folder, in place of the ones the settings name")
    options = parser.parse_args(arguments)

    from moss.config.load_tokenizer import load_tokenizer_config
    from moss.data.assemble import assemble
    from moss.data.code_store import CodeStore, store_folder
    from moss.data.encode import EncodeSettings, card_of, encode_utterances
    from moss.data.manifest import read_manifest
    from moss.data.member_sets import MEMBERS, build_member_sets
    from moss.data.shard_writer import write_shards
    from moss.tokenizer.build import build_tokenizer

    folders = build_member_sets(options.root, options.members or MEMBERS)
    config = load_tokenizer_config(options.tokenizer, options.weights)
    tokenizer = build_tokenizer(config)
    card = card_of(tokenizer, config.kind)
    for member, folder in folders.items():
        utterances = read_manifest(folder / "utterances.jsonl")
        store = CodeStore(store_folder(folder, card), card)
        encode_utterances(utterances, store, partial(build_tokenizer, config), EncodeSettings(max_bad_frac=0.0))
        index = write_shards(folder / "shards", assemble(utterances, store).coded, card)
        sys.stdout.write(f"{member}: {index.utterances} recordings, {index.frames} frames in {folder / 'shards'}\n")
    sys.stdout.write(f"next: train.py experiment={'delay_xs' if 'tts' in folders else next(iter(folders)) + '_xs'}\n")


if __name__ == "__main__":
    sys.exit(run_command(main))
