"""Encode every recording of the manifest with an audio tokenizer; start again to go on after a stop.

Of a cat tokenizer only the encoder is loaded. A recording longer than two minutes is encoded as a stream.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from moss.command import run_command


def main(arguments: Sequence[str]) -> None:
    """Build the tokenizer, encode what is not done yet, say what was done."""
    parser = argparse.ArgumentParser(prog="02_encode_codes.py", description=__doc__)
    add = parser.add_argument
    add("--root", type=Path, default=Path("data/speech"), help="data folder (default: %(default)s)")
    add(
        "--tokenizer",
        default="mel_rvq",
        help="name in configs/tokenizer/, .yaml file or checkpoint folder (default: %(default)s)",
    )
    add("--weights", type=Path, help="file or checkpoint folder, in place of what the settings name")
    add("--num-codebooks", type=int, help="store only the first ones (default: all)")
    add("--out", type=Path, help="code folder (default: <root>/codes/<name>-<fingerprint>-<codebooks>)")
    add("--device", default="cpu", help="where the tokenizer runs (default: %(default)s)")
    add("--workers", type=int, help="processes, each with its own tokenizer (default: one per core, 1 on a GPU)")
    add("--batch-size", type=int, default=8, help="recordings encoded together (default: %(default)s)")
    add(
        "--batch-policy", choices=("single", "bucketed"), help="how a cat tokenizer joins recordings (default: its own)"
    )
    add("--max-bad-frac", type=float, default=0.05, help="stop above this fraction of bad files (default: %(default)s)")
    options = parser.parse_args(arguments)

    from moss.config.load_tokenizer import load_tokenizer_config
    from moss.config.tokenizer import BatchPolicy, CatConfig, Part
    from moss.data.code_store import CodeStore, store_folder
    from moss.data.encode import EncodeSettings, card_of, default_workers, encode_utterances
    from moss.data.manifest import read_manifest
    from moss.errors import DataError
    from moss.tokenizer.build import build_tokenizer

    utterances = read_manifest(options.root / "utterances.jsonl")
    config = load_tokenizer_config(options.tokenizer, options.weights)
    if isinstance(config, CatConfig):
        policy = config.batch_policy if options.batch_policy is None else BatchPolicy(options.batch_policy)
        config = dataclasses.replace(config, part=Part.encoder, batch_policy=policy)
    elif options.batch_policy is not None:
        raise DataError(f"--batch-policy: a {config.kind} tokenizer has none; leave the option out")
    make_encoder = partial(build_tokenizer, config, options.device)
    card = card_of(make_encoder(), config.kind, options.num_codebooks)
    store = CodeStore(options.out or store_folder(options.root, card), card)
    workers = default_workers(options.device) if options.workers is None else options.workers
    settings = EncodeSettings(workers=workers, batch_size=options.batch_size, max_bad_frac=options.max_bad_frac)
    result = encode_utterances(utterances, store, make_encoder, settings)
    sys.stdout.write(
        f"tokenizer: {card.describe()}\nencoded: {result.encoded}   done before: {result.kept}   "
        f"put aside (bad): {result.quarantined}   without a recording: {result.without_recording}\n"
        f"written: {store.folder}\nnext: data_prep/03_write_shards.py --root {options.root}\n"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
