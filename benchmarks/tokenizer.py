"""How much faster and smaller the Cat tokenizer is than the published code: ratios, both sides in turn in one run.

Give a checkout of OpenMOSS/MOSS-Audio-Tokenizer with --reference. Both sides get the same random weights and the same
audio, and their codes are compared. Or give --long: one hour of audio through an encoder stream, and its peak memory.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tokenizer_reference as published
import torch
from command_line import shown
from tokenizer_cases import (
    FRAME_S,
    decode_stream,
    encode_stream,
    quantizer_config,
    random_tokenizer,
    scaled_config,
    signal,
)
from tokenizer_child import measure
from torch import Tensor

from moss.command import run_command
from moss.config.tokenizer import BatchPolicy, CatConfig
from moss.data.files import atomic_write
from moss.errors import ConfigError
from moss.evaluation.provenance import processor

STREAM_S = 15.0
"""Longer than the window of 10 s, so that a stream's cost is that of full caches."""
MEMORY_CASES = (("encode", 10.0), ("encode", 60.0), ("encode", 600.0), ("encode_stream", STREAM_S))
MEMORY_CASES += (("decode", 10.0), ("decode", 60.0), ("decode", 600.0), ("decode_stream", STREAM_S))
BATCH_S = (2.0, 4.6, 7.1, 9.7, 12.3, 14.9, 17.4, 20.0)
"""Durations of the mixed batch: as far from each other as those of a speech corpus with clips of up to 20 s."""
LONG_GOAL_BYTES = 2_000_000_000
LONG_LIMIT_S = 4 * 3600.0
GIB = 2**30
PROFILE = (
    "Where the time goes (not measured in this run, but with a profiler on 2026-11-23: AMD EPYC with AVX-512, one "
    "thread, widths and depths over 4): at 10 s all positions lie in one window, and both sides do the same products. "
    "What is left at 60 s: half of ours is matrix products at the core's speed, a third attention at three quarters of "
    "it. In pushes, nearly half is reading the weights once per frame, which both sides do. Our streams hold more: a "
    "push that fails leaves its stream as it was, and caches have room to grow instead of being copied at every step. "
    "Other work on the machine makes the real-time factors, which are wall time, too large."
)


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table of speeds."""

    name: str
    ours: Callable[[], list[Tensor]]
    theirs: Callable[[], list[Tensor]]
    goal: float | None = None
    calls: int = 1
    """Calls in one measurement."""
    frames: int | None = None
    """Where set, milliseconds are of one of so many frames."""


def main(arguments: Sequence[str]) -> None:
    """Measure every case, print the tables, write them."""
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    text = "\n".join(_long(options, shown(arguments)) if options.long else _against(options, shown(arguments))) + "\n"
    sys.stdout.write("\n" + text)
    if options.output is not None:
        with atomic_write(options.output) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tokenizer.py", description=__doc__)
    add = parser.add_argument
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--reference", type=Path, help="checkout of OpenMOSS/MOSS-Audio-Tokenizer, as it is")
    task.add_argument("--long", action="store_true", help="encode one hour and print the peak memory")
    add("--width-divisor", type=int, default=4, help="of the published widths (default: %(default)s)")
    add("--depth-divisor", type=int, default=4, help="of the published depths (default: %(default)s)")
    add("--repeats", type=int, default=5, help="measurements of each side, in turn (default: %(default)s)")
    add("--threads", type=int, default=2, help="default: %(default)s")
    add("--cpu-time", action="store_true", help="CPU seconds instead of wall time, where others use the machine too")
    add("--only", default="", help="only rows whose name has this in it")
    add("--memory-limit-gib", type=float, default=16.0, help="address space of a process (default: %(default)s)")
    add("--time-limit-s", type=float, default=300.0, help="of a process that measures memory (default: %(default)s)")
    add("--tokenizer", default="cat_embedded", help="with --long: name, as in configs/tokenizer (default: %(default)s)")
    add("--random-weights", action="store_true", help="with --long: the geometry of --tokenizer, without its weights")
    add("--hours", type=float, default=1.0, help="with --long (default: %(default)s)")
    add("--output", type=Path, help="write the tables here too")
    options = parser.parse_args(arguments)
    counts = (options.repeats, options.threads, options.width_divisor, options.depth_divisor)
    if options.hours <= 0 or min(counts) < 1:
        raise ConfigError("--hours, --repeats, --threads, --width-divisor and --depth-divisor: expected more than 0")
    return options


def _long(options: argparse.Namespace, shown: str) -> list[str]:
    task = {
        "what": "long",
        "tokenizer": options.tokenizer,
        "random_weights": options.random_weights,
        "audio_s": options.hours * 3600,
        "threads": options.threads,
    }
    result = measure(task, LONG_LIMIT_S)
    if "failed" in result:
        raise ConfigError(f"--long {options.tokenizer}: {result['failed']}; choose a smaller tokenizer or --hours")
    peak = result["peak_bytes"]
    verdict = "below" if peak < LONG_GOAL_BYTES else "NOT below"
    return [
        "# A long recording through the tokenizer's encoder stream",
        "",
        f"`python benchmarks/tokenizer.py {shown}`, {_machine(options)}",
        "",
        f"{result['audio_s'] / 3600:g} h of audio, {result['frames']:,} frames: peak memory of the whole process, "
        f"interpreter and weights included, {peak / 1e6:,.0f} MB, {verdict} the goal of "
        f"{LONG_GOAL_BYTES / 1e9:g} GB; real-time factor {result['seconds'] / result['audio_s']:.4f}.",
    ]


def _against(options: argparse.Namespace, shown: str) -> list[str]:
    published.check_checkout(options.reference)
    config = scaled_config(options.width_divisor, options.depth_divisor)
    cases = _cases(options.reference, options)
    lines = _heading(config, options, shown)
    clock = time.process_time if options.cpu_time else time.perf_counter
    for case in (case for case in cases if options.only in case.name):
        lines.append(_measured(case, options.repeats, clock))
        sys.stdout.write(lines[-1] + "\n")
        sys.stdout.flush()
    return [*lines, "", *_notes(config), "", *_memory(options), "", PROFILE]


@torch.no_grad()
def _cases(checkout: Path, options: argparse.Namespace) -> list[Case]:
    divisors = (options.width_divisor, options.depth_divisor)
    ours = random_tokenizer(scaled_config(*divisors))
    theirs = published.reference_tokenizer(checkout, ours.model.config, ours.model.state_dict())
    rate_hz = ours.spec.sampling_rate_hz
    short, middle, streamed = (signal(seconds, rate_hz) for seconds in (10.0, 60.0, STREAM_S))
    frames = ours.spec.num_frames(len(streamed))
    codes = {len(wave): ours.encode([wave])[0] for wave in (short, middle, streamed)}
    cases = [Case("ours against ours, encode 10 s", lambda: ours.encode([short]), lambda: ours.encode([short]))]
    for wave, seconds, goal in ((short, 10, None), (middle, 60, 3.0)):
        cases += [
            Case(
                f"encode {seconds} s",
                lambda w=wave: ours.encode([w]),
                lambda w=wave: published.encode(theirs, [w]),
                goal,
            ),
            Case(
                f"decode {seconds} s",
                lambda w=wave: ours.decode([codes[len(w)]]),
                lambda w=wave: [published.decode(theirs, codes[len(w)])],
            ),
        ]
    mixed = [signal(seconds, rate_hz, seed=i) for i, seconds in enumerate(BATCH_S, 1)]
    for policy in BatchPolicy:
        tokenizer = random_tokenizer(scaled_config(*divisors, policy=policy))
        name = f"encode a batch of {len(mixed)}, {BATCH_S[0]:g} to {BATCH_S[-1]:g} s, batch_policy={policy.value}"
        run = lambda t=tokenizer: t.encode(mixed)  # noqa: E731
        cases.append(Case(name, run, lambda: published.encode(theirs, mixed), 1.8))
    cases += [
        Case(
            f"encode {STREAM_S:g} s in 80 ms pushes",
            lambda: [encode_stream(ours, streamed)],
            lambda: [published.encode_stream(theirs, streamed, FRAME_S)],
            frames=frames,
        ),
        Case(
            f"decode {STREAM_S:g} s in 80 ms pushes",
            lambda: [decode_stream(ours, codes[len(streamed)])],
            lambda: [published.decode_stream(theirs, codes[len(streamed)], FRAME_S)],
            frames=frames,
        ),
    ]
    return cases + _quantizer_cases(checkout)


def _quantizer_cases(checkout: Path) -> list[Case]:
    """One streamed frame through the quantizer, at its published size."""
    config = quantizer_config()
    model = random_tokenizer(config).model
    theirs = published.reference_tokenizer(checkout, config, model.state_dict())
    folded = model.quantizer.fold()
    hidden = torch.randn(1, 1, config.quantizer.input_size, generator=torch.Generator().manual_seed(0))
    codes = folded.encode(hidden)
    return [
        Case(
            "quantizer at full size, encode one frame",
            lambda: [folded.encode(hidden)[0]],
            lambda: [published.quantize(theirs, hidden)[0]],
            10.0,
            calls=20,
            frames=1,
        ),
        Case(
            "quantizer at full size, decode one frame",
            lambda: [folded.decode(codes)[0]],
            lambda: [published.dequantize(theirs, codes)[0]],
            calls=20,
            frames=1,
        ),
    ]


@torch.no_grad()
def _measured(case: Case, repeats: int, clock: Callable[[], float]) -> str:
    """One row: median of the ratios of neighbouring runs, and how far the results agree."""
    ours = case.ours()
    theirs = case.theirs()
    ratios, our_ms, their_ms = [], [], []
    for _ in range(repeats):
        their_ms.append(_milliseconds(case.theirs, case, clock))
        our_ms.append(_milliseconds(case.ours, case, clock))
        ratios.append(their_ms[-1] / our_ms[-1])
    cells = [case.name, f"{statistics.median(our_ms):,.1f}", f"{statistics.median(their_ms):,.1f}"]
    cells += [f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}-{max(ratios):.2f}"]
    cells += ["" if case.goal is None else f"{case.goal:g}", agreement(ours, theirs)]
    return f"| {' | '.join(cells)} |"


def _milliseconds(run: Callable[[], list[Tensor]], case: Case, clock: Callable[[], float]) -> float:
    started_at = clock()
    for _ in range(case.calls):
        run()
    return 1e3 * (clock() - started_at) / case.calls / (case.frames or 1)


def agreement(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> str:
    """Share of equal codes, or the largest difference of samples over the loudest; over the frames that both have.

    The published code leaves a partial last frame out of its length.
    """
    pairs = [(a[: min(len(a), len(b))], b[: min(len(a), len(b))]) for a, b in zip(ours, theirs, strict=True)]
    if ours[0].is_floating_point():
        furthest = max((a - b).abs().max().item() for a, b in pairs)
        return f"{furthest / max(b.abs().max().item() for _, b in pairs):.0e} of peak"
    return f"{torch.cat([(a == b).flatten() for a, b in pairs]).double().mean().item():.2%}"


def _memory(options: argparse.Namespace) -> list[str]:
    lines = [
        "Peak memory of one call above that of the loaded weights and the input, each in a process of its own with "
        f"{options.memory_limit_gib:g} GiB of address space and {options.time_limit_s:g} s. Freed memory goes back to "
        "the system at once, so that the peak is of what is live; the real-time factor is a usual call's, wall time.",
        "",
        "| case | ours, MB | bytes per second of audio | published, MB | times as small | ours, real-time factor |",
        "|---|---|---|---|---|---|",
    ]
    for what, audio_s in MEMORY_CASES:
        if options.only not in row_name(what, audio_s):
            continue
        results = {side: _one_memory(options, side, what, audio_s) for side in ("ours", "theirs")}
        lines.append(memory_row(what, audio_s, results["ours"], results["theirs"]))
        sys.stdout.write(lines[-1] + "\n")
        sys.stdout.flush()
    return lines


def _one_memory(options: argparse.Namespace, side: str, what: str, audio_s: float) -> dict[str, Any]:
    task = {
        "side": side,
        "what": what,
        "audio_s": audio_s,
        "reference": str(options.reference.resolve()),
        "width_divisor": options.width_divisor,
        "depth_divisor": options.depth_divisor,
        "threads": options.threads,
        "address_space_bytes": int(options.memory_limit_gib * GIB),
    }
    return measure(task, options.time_limit_s)


def row_name(what: str, audio_s: float) -> str:
    """How both tables name a measurement."""
    return f"{what.removesuffix('_stream')} {audio_s:g} s" + " in 80 ms pushes" * what.endswith("_stream")


def memory_row(what: str, audio_s: float, ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """One row of the table of memory; a side that failed says how."""
    cells = [row_name(what, audio_s), ours.get("failed") or f"{ours['peak_bytes'] / 1e6:,.0f}"]
    cells.append("" if "failed" in ours else f"{ours['peak_bytes'] / audio_s:,.0f}")
    cells.append(theirs.get("failed") or f"{theirs['peak_bytes'] / 1e6:,.0f}")
    both = "failed" not in ours and "failed" not in theirs
    cells.append(f"{theirs['peak_bytes'] / ours['peak_bytes']:.1f}" if both else "")
    cells.append("" if "failed" in ours else f"{ours['seconds'] / audio_s:.4f}")
    return f"| {' | '.join(cells)} |"


def _heading(config: CatConfig, options: argparse.Namespace, shown: str) -> list[str]:
    clock = "CPU" if options.cpu_time else "wall"
    values = sum(parameter.numel() for parameter in random_tokenizer(config).model.parameters())
    return [
        "# The tokenizer against the published code",
        "",
        f"`python benchmarks/tokenizer.py {shown}`, {_machine(options)}; reference: "
        "OpenMOSS/MOSS-Audio-Tokenizer, float32.",
        f"Geometry: the published one with widths over {options.width_divisor} and depths over "
        f"{options.depth_divisor} ({values / 1e6:.1f} million values); head size, windows of 10 s, 32 codebooks of "
        "1,024 as published.",
        f"Median of {options.repeats} ratios of runs next to each other, {clock} time; both sides have the same random "
        "weights and the same audio. Milliseconds are of a call, or of a frame where frames are pushed one by one.",
        "",
        "| case | ours, ms | published, ms | times as fast | range | goal | agreement |",
        "|---|---|---|---|---|---|---|",
    ]


@torch.no_grad()
def _notes(config: CatConfig) -> list[str]:
    tokenizer = random_tokenizer(config)
    wave = signal(STREAM_S, config.sampling_rate_hz)
    at_once = tokenizer.encode([wave])
    pushed = [encode_stream(tokenizer, wave)]
    return [
        "Agreement is the share of equal codes, or the largest difference of samples over the loudest sample. In "
        "pushes beyond its window the published code computes something else than at once: its cache drops keys that "
        f"the first positions of a push still see. Of our codes, {agreement(pushed, at_once)} are the same in pushes "
        "and at once. The published batch call pads all clips to the longest.",
        "Narrow networks favour the side with the cheaper attention: at full width the share of the matrix products, "
        "which are the same on both sides, is larger. --width-divisor 1 shows that.",
    ]


def _machine(options: argparse.Namespace) -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    hardware = f"{platform.machine()}, {processor() or 'unknown processor'}, {os.cpu_count()} cores"
    return f"{datetime.now(UTC):%Y-%m-%d}, {hardware}, {options.threads} thread(s), {libraries}"


if __name__ == "__main__":
    sys.exit(run_command(main))
