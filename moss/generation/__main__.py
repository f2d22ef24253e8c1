"""Command line: `python -m moss.generation --checkpoint runs/... --text "Hello there." --output out`."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from moss.data.command import run_command
from moss.errors import GenerationError


def parser() -> argparse.ArgumentParser:
    """All options."""
    made = argparse.ArgumentParser(prog="python -m moss.generation", description="Speak texts with a trained model.")
    add = made.add_argument
    add("--checkpoint", type=Path, required=True, help="checkpoint folder, or run folder (its newest checkpoint)")
    add("--output", type=Path, default=Path("generations"), help="gets wavs/, codes/, generations.jsonl")
    source = made.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", help="one text to speak")
    source.add_argument("--requests", type=Path, help="JSONL with id, text, language, tokens, reference")
    source.add_argument("--manifest", type=Path, help="draw trained and held-out sentences from utterances.jsonl")
    add("--reference", help="with --text: recording whose voice is used")
    add("--language", default="", help="with --text: language tag (en) or English name")
    add("--tokens", type=int, help="with --text: wanted length in frames (12.5 a second)")
    add("--per-split", type=int, default=50, help="with --manifest: sentences of each split (default: %(default)s)")
    add("--min-words", type=int, default=2, help="with --manifest: shortest sentence (default: %(default)s)")
    add("--max-duration", type=float, default=12.0, help="with --manifest: longest recording, s (default: %(default)s)")
    add("--reconstruct", action="store_true", help="also pass the recordings through the tokenizer")
    add("--seed", type=int, default=0)
    add("--batch-size", type=int, default=16, help="changes speed only, not results")
    add("--max-frames", type=int, default=1000, help="cut after so many frames (default: %(default)s = 80 s)")
    add("--temperature", type=float, default=1.7, help="of the codebooks; 0 is greedy (default: %(default)s)")
    add("--top-k", type=int, default=25, help="default: %(default)s")
    add("--top-p", type=float, default=0.8, help="default: %(default)s")
    add("--repetition-penalty", type=float, default=1.0, help="default: %(default)s")
    add("--text-temperature", type=float, default=1.5, help="of the text channel, which ends the audio")
    add("--compatibility", choices=["none", "reference"], default="none", help="reference: the published code's quirks")
    add("--device", default="cpu")
    return made


def main(arguments: Sequence[str]) -> None:
    """Generate what the options ask for.

    Raises:
        GenerationError: Every request failed.
    """
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from moss.config.generation import GenerationConfig
    from moss.config.schema import build
    from moss.data.manifest import read_manifest
    from moss.generation.engine import Engine
    from moss.generation.requests import Request, draw_requests, read_requests

    config = build(
        GenerationConfig,
        {
            "text": {"temperature": options.text_temperature, "top_k": 50},
            "audio": {
                "temperature": options.temperature,
                "top_k": options.top_k,
                "top_p": options.top_p,
                "repetition_penalty": options.repetition_penalty,
            },
            "max_frames": options.max_frames,
            "batch_size": options.batch_size,
            "seed": options.seed,
            "compatibility": options.compatibility,
        },
    )
    if options.requests is not None:
        requests = read_requests(options.requests)
    elif options.manifest is not None:
        rows = read_manifest(options.manifest)
        requests = draw_requests(rows, options.per_split, options.min_words, options.max_duration, options.seed)
    elif not options.text.strip():
        raise GenerationError("--text is empty")
    else:
        one = Request(
            id="utterance",
            text=options.text,
            language=options.language,
            tokens=options.tokens,
            reference=options.reference,
        )
        requests = [one]
    engine = Engine(options.checkpoint, config, options.device)
    rows_made = engine.run(requests, options.output, options.reconstruct)
    failed = [row for row in rows_made if row["error"]]
    for row in failed[:5]:
        sys.stderr.write(f"{row['request_id']}: {row['error']}\n")
    audio_s = engine.tokenizer.spec.seconds(sum(row["frames"] for row in rows_made))
    made = len(rows_made) - len(failed)
    sys.stdout.write(f"{made} of {len(rows_made)} made, {audio_s:.1f} s of audio: {options.output}\n")
    if made == 0:
        raise GenerationError(f"no request could be made; the first: {failed[0]['error']}")


if __name__ == "__main__":
    sys.exit(run_command(main))
