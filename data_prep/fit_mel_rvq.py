"""Fit the baseline audio tokenizer on the clips of a manifest that are not held out, and write its weights."""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from moss.command import run_command
from moss.data.audio import load_audio
from moss.data.files import atomic_write
from moss.data.manifest import Utterance, read_manifest
from moss.data.progress import track
from moss.data.split import TRAIN, split_of
from moss.tokenizer.mel_rvq_fit import SAMPLING_RATE_HZ, FitSettings, fit
from moss.tokenizer.mel_spectrogram import FloatArray


def main(arguments: Sequence[str]) -> None:
    """Parse, fit, write."""
    defaults = FitSettings()
    parser = argparse.ArgumentParser(prog="fit_mel_rvq.py", description=__doc__)
    parser.add_argument("--manifest", type=Path, required=True, help="utterances.jsonl")
    parser.add_argument("--output", type=Path, required=True, help="weights to write (.safetensors)")
    for name in ("num_codebooks", "codebook_size", "width", "iterations", "seed"):
        default = getattr(defaults, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--exponent", type=float, default=defaults.exponent, help=f"default {defaults.exponent}")
    options = vars(parser.parse_args(arguments))
    manifest, output = options.pop("manifest"), options.pop("output")
    settings = FitSettings(**options)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    utterances = sorted(
        (u for u in read_manifest(manifest, needs_text=False) if u.audio and (u.split or split_of(u.text)) == TRAIN),
        key=lambda u: u.id,
    )
    weights = fit(_waves(utterances), settings)
    notes = {"fitted_on": f"{len(utterances)} clips, {manifest.name}", "settings": str(settings)}
    with atomic_write(output) as temporary:
        weights.save(temporary, notes)
    sys.stdout.write(f"{output}: {weights.codebooks.shape[0]} codebooks fitted on {len(utterances)} clips\n")


def _waves(utterances: Sequence[Utterance]) -> Iterator[FloatArray]:
    for utterance in track(utterances, "reading", len(utterances)):
        yield load_audio(utterance.audio, SAMPLING_RATE_HZ, max_channels=utterance.max_channels).numpy()


if __name__ == "__main__":
    sys.exit(run_command(main))
