"""Command line: `python -m moss.generation --checkpoint runs/... --text "Hello there." --output out`."""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moss.command import run_command
from moss.config.generation import Attention
from moss.config.model import Member, Template
from moss.errors import GenerationError

if TYPE_CHECKING:
    from moss.generation.requests import Request


def parser() -> argparse.ArgumentParser:
    """All options."""
    made = argparse.ArgumentParser(prog="python -m moss.generation", description="Speak texts with a trained model.")
    add = made.add_argument
    add("--checkpoint", type=Path, required=True, help="checkpoint, run (its newest) or published folder")
    add("--tokenizer", help="audio tokenizer: name, .yaml or folder; needed where the checkpoint names none")
    add("--member", choices=[member.value for member in Member], help="what a published checkpoint was trained to do")
    add("--template", choices=[template.value for template in Template], help="prompt format of a published checkpoint")
    add("--output", type=Path, default=Path("generations"), help="gets wavs/, codes/, generations.jsonl")
    source = made.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", help="one text to speak")
    source.add_argument("--ambient-sound", help="one sound to make, in words (sound-effect models)")
    source.add_argument("--requests", type=Path, help="JSONL with the fields of a request: id, text, reference, ...")
    source.add_argument("--manifest", type=Path, help="draw trained and held-out sentences from utterances.jsonl")
    add(
        "--reference",
        action="append",
        default=[],
        help="with --text: recording whose voice is used; once for each speaker of a dialogue, '' for one without",
    )
    add("--prefix", help="with --text: recording that is carried on")
    add("--prefix-text", help="with --prefix: its words")
    add("--language", default="", help="with --text: language tag (en) or English name")
    add("--tokens", type=int, help="with --text: wanted length in frames (12.5 a second)")
    add("--instruction", help="description of the wanted voice (voice generators)")
    add("--per-split", type=int, default=50, help="with --manifest: sentences of each split (default: %(default)s)")
    add("--min-words", type=int, default=2, help="with --manifest: shortest sentence (default: %(default)s)")
    add("--max-duration", type=float, default=12.0, help="with --manifest: longest recording, s (default: %(default)s)")
    add("--reconstruct", action="store_true", help="also pass the recordings through the tokenizer")
    add("--seed", type=int, default=0)
    add("--batch-size", type=int, default=16, help="changes speed only, not results")
    add("--max-chars", type=int, help="speak a longer text in parts of at most so many characters")
    add("--max-frames", type=int, help="most frames of one go; longer texts are split (default: 1000 = 80 s)")
    add("--temperature", type=float, help="of the codebooks; 0 is greedy (default of samplers: the model's preset)")
    add("--top-k", type=int)
    add("--top-p", type=float)
    add("--repetition-penalty", type=float)
    add("--text-temperature", type=float, help="of the text channel, which ends the audio")
    add("--num-codebooks", type=int, help="speak the first so many codebooks only (Local models)")
    add("--compatibility", choices=["none", "reference"], help="reference: the published code's quirks")
    add("--device", default="cpu")
    add("--dtype", choices=["float32", "bfloat16", "float16"], help="default: float32 on a CPU, bfloat16 elsewhere")
    add("--attention", default="auto", choices=[kind.value for kind in Attention])
    add("--offload", default="none", choices=["none", "cpu"], help="cpu: the layers wait in main memory")
    return made


def main(arguments: Sequence[str]) -> None:
    """Generate what the options ask for.

    Raises:
        GenerationError: Every request failed.
    """
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Loading says which attention was chosen.
    logging.getLogger("moss.model.decoder").setLevel(logging.WARNING)
    from moss.generation.engine import Engine
    from moss.generation.loading import load_speech_model
    from moss.generation.presets import OVERRIDES, with_overrides

    requests = wanted_requests(options)
    model = load_speech_model(
        options.checkpoint,
        tokenizer=options.tokenizer,
        device=options.device,
        dtype=options.dtype,
        attention=options.attention,
        offload=options.offload,
        member=options.member,
        template=options.template,
    )
    chosen = {name: value for name, value in vars(options).items() if name in OVERRIDES}
    config = with_overrides(model.config, model.model.config, **chosen)
    engine = Engine(model, replace(config, seed=options.seed))
    rows_made = engine.run(requests, options.output, options.reconstruct)
    failed = [row for row in rows_made if row["error"]]
    for row in failed[:5]:
        sys.stderr.write(f"{row['request_id']}: {row['error']}\n")
    audio_s = engine.tokenizer.spec.seconds(sum(row["frames"] for row in rows_made))
    made = len(rows_made) - len(failed)
    sys.stdout.write(f"{made} of {len(rows_made)} made, {audio_s:.1f} s of audio: {options.output}\n")
    if made == 0:
        raise GenerationError(f"no request could be made; the first: {failed[0]['error']}")


def wanted_requests(options: argparse.Namespace) -> "list[Request]":
    """The requests of a command line.

    Raises:
        GenerationError: An empty text.
        MossError: A file of requests or a manifest that cannot be used.
    """
    from moss.data.manifest import read_manifest
    from moss.generation.requests import Request, draw_requests, read_requests

    if options.requests is not None:
        return read_requests(options.requests)
    if options.manifest is not None:
        rows = read_manifest(options.manifest)
        return draw_requests(rows, options.per_split, options.min_words, options.max_duration, options.seed)
    if options.text is not None and not options.text.strip():
        raise GenerationError("--text is empty")
    clips: list[str | None] = [clip or None for clip in options.reference]
    one = Request(
        id="utterance",
        text=options.text,
        language=options.language,
        tokens=options.tokens,
        reference=clips[0] if len(clips) == 1 else None,
        references=clips if len(clips) > 1 else None,
        instruction=options.instruction,
        ambient_sound=options.ambient_sound,
        prefix=options.prefix,
        prompt_text=options.prefix_text,
        max_chars=options.max_chars,
    )
    return [one]


if __name__ == "__main__":
    sys.exit(run_command(main))
