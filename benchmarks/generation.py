"""How much faster codes are generated than by the published code: ratios, both sides in turn in one run.

Give a checkout of OpenMOSS/MOSS-TTS with --reference. Both sides get the same random weights, the same prompts and
greedy decoding; the codes are compared under compatibility=reference. Fixture B of our measurements: 8 layers of
width 512, 32 codebooks, a text table of 151,936 rows.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from command_line import shown
from reference_models import check_checkout, generate_delay, generate_local, reference_delay, reference_local
from torch import Tensor, nn

from moss.command import run_command
from moss.config.generation import Compatibility, GenerationConfig, SamplerConfig
from moss.config.model import DelayModelConfig, LocalModelConfig, ModelConfig
from moss.data.files import atomic_write
from moss.generation.delay_loop import generate_delay as our_delay
from moss.generation.loop import generate
from moss.model.build import build_model
from moss.model.delay import DelayModel

GEOMETRY: dict[str, Any] = {
    "num_codebooks": 32,
    "vocab_size": 151_936,
    "hidden_size": 512,
    "num_layers": 8,
    "num_heads": 8,
    "num_kv_heads": 4,
    "head_dim": 64,
    "intermediate_size": 1536,
    "max_positions": 4096,
}
DEPTH = {"depth_hidden_size": 384, "depth_num_layers": 4, "depth_intermediate_size": 2240, "depth_mlp_size": 512}
"""The published proportions of depth to backbone width."""
PROMPT_POSITIONS = 150
GREEDY = SamplerConfig(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table."""

    name: str
    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor]
    goal: float


def main(arguments: Sequence[str]) -> None:
    """Measure every case, print the table, write it."""
    options = _parse(arguments)
    check_checkout(options.reference)
    torch.set_num_threads(options.threads)
    delay, local = _models()
    lines = _heading(options, arguments)
    for case in _cases(options, delay, local):
        lines.append(_measured(case, options.repeats))
        sys.stdout.write(lines[-1] + "\n")
    lines += ["", *_growth(delay, options)]
    text = "\n".join(lines) + "\n"
    sys.stdout.write("\n" + text)
    if options.output is not None:
        with atomic_write(options.output) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="generation.py", description=__doc__)
    add = parser.add_argument
    add("--reference", type=Path, required=True, help="checkout of OpenMOSS/MOSS-TTS, as it is")
    add("--delay-frames", type=int, default=256, help="rows of a Delay run (default: %(default)s)")
    add("--local-frames", type=int, default=32, help="frames of a Local run (default: %(default)s)")
    add("--long-frames", type=int, default=2048, help="compared with 256 frames, ours only (default: %(default)s)")
    add("--repeats", type=int, default=3, help="measurements of each side, in turn (default: %(default)s)")
    add("--threads", type=int, default=2, help="default: %(default)s")
    add("--output", type=Path, help="write the table here too")
    return parser.parse_args(arguments)


def _models() -> tuple[nn.Module, nn.Module]:
    """Random weights under which no side ever ends: a greedy run has exactly as many frames as asked for."""
    torch.manual_seed(0)
    delay = build_model(DelayModelConfig(**GEOMETRY)).eval()
    local = build_model(LocalModelConfig(**GEOMETRY, **DEPTH)).eval()
    special = delay.config.special_tokens
    with torch.no_grad():
        # A constant feature that no block writes to, and a text head that reads nothing else: always the slot.
        delay.language_model.embed_tokens.weight[:, 0] = 1.0
        for layer in delay.language_model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        for table in delay.emb_ext:
            table.weight[:, 0] = 0.0
        delay.lm_heads[0].weight.zero_()
        delay.lm_heads[0].weight[special.gen_slot, 0] = 1.0
        # A text head that knows nothing prefers id 0, which does not end the audio.
        local.layer_norm_before_lm_heads[0].weight.zero_()
    return delay, local


def _prompt(config: ModelConfig, batch: int) -> Tensor:
    """A prompt of text ids that has just opened its audio, shape (batch, positions, channels)."""
    random = torch.Generator().manual_seed(1)
    rows = torch.full((batch, PROMPT_POSITIONS, 1 + config.num_codebooks), config.codebook_size)
    rows[..., 0] = torch.randint(0, 100_000, rows.shape[:2], generator=random)
    # The published loop looks for the start of the turn.
    rows[:, -4, 0] = config.special_tokens.im_start
    rows[:, -1, 0] = config.special_tokens.audio_start
    return rows


def _ours(model: nn.Module, rows: Tensor, frames: int, compatibility: Compatibility) -> Tensor:
    """Rows that our loop makes after the prompts."""
    config = GenerationConfig(
        text=GREEDY, audio=GREEDY, max_frames=frames, compatibility=compatibility, runaway_repeats=0
    )
    seeds = list(range(len(rows)))
    if isinstance(model, DelayModel):
        # The published loop counts rows, the last N - 1 of which complete no frame.
        made = our_delay(model, list(rows), seeds, config, max_rows=frames)
    else:
        made = generate(model, list(rows), seeds, config)
    return torch.stack([result.rows[-frames:] for result in made])


def _cases(options: argparse.Namespace, delay: nn.Module, local: nn.Module) -> list[Case]:
    checkout: Path = options.reference
    their_delay = reference_delay(checkout, delay.config, delay.state_dict())
    their_local = reference_local(checkout, local.config, local.state_dict())
    cases = []
    frames = options.delay_frames
    one = _prompt(delay.config, 1)
    for compatibility in (Compatibility.reference, Compatibility.none):
        cases.append(
            Case(
                f"Delay, batch 1, {frames} rows, compatibility={compatibility.value}",
                lambda c=compatibility: _ours(delay, one, frames, c)[0],
                lambda: generate_delay(their_delay, one[0], frames),
                2.5,
            )
        )
    for batch, goal in ((1, 4.0), (8, 8.0)):
        prompts = _prompt(local.config, batch)
        for compatibility in (Compatibility.reference, Compatibility.none):
            cases.append(
                Case(
                    f"Local, batch {batch}, {options.local_frames} frames, compatibility={compatibility.value}",
                    lambda p=prompts, c=compatibility: _ours(local, p, options.local_frames, c),
                    lambda p=prompts: generate_local(their_local, p, options.local_frames),
                    goal,
                )
            )
    return cases


def _measured(case: Case, repeats: int) -> str:
    """One row: median of the ratios of neighbouring runs, and whether the codes are the same."""
    _timed(case.ours)
    ratios = []
    ours = theirs = torch.empty(0)
    for _ in range(repeats):
        theirs, their_s = _timed(case.theirs)
        ours, our_s = _timed(case.ours)
        ratios.append(their_s / our_s)
    same = (ours[..., 1:] == theirs[..., 1:]).float().mean().item()
    spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
    return f"| {case.name} | {statistics.median(ratios):.2f} | {spread} | {case.goal:g} | {same:.2%} |"


def _growth(delay: nn.Module, options: argparse.Namespace) -> list[str]:
    """Cost of a frame in a long run over that in a short one."""
    rows = _prompt(delay.config, 1)
    short, long = 256, options.long_frames
    ratios = []
    for _ in range(options.repeats):
        _, short_s = _timed(lambda: _ours(delay, rows, short, Compatibility.none))
        _, long_s = _timed(lambda: _ours(delay, rows, long, Compatibility.none))
        ratios.append((long_s / long) / (short_s / short))
    return [
        f"Cost of a frame (Delay, batch 1): {long:,} frames over {short}: {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f}-{max(ratios):.3f}), goal at most 1.15."
    ]


def _timed(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    started_at = time.perf_counter()
    result = run()
    return result, time.perf_counter() - started_at


def _heading(options: argparse.Namespace, arguments: Sequence[str]) -> list[str]:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return [
        "# Generation against the published code",
        "",
        f"`python benchmarks/generation.py {shown(arguments)}`, {platform.machine()}, {options.threads} threads, "
        f"{libraries}; reference: OpenMOSS/MOSS-TTS, attention sdpa, float32, greedy. Prompt encoding is inside the "
        "measured time.",
        f"Median of {options.repeats} ratios of runs next to each other; both sides have the same random weights.",
        "",
        "| case | times as fast | range | goal | codes equal |",
        "|---|---|---|---|---|",
    ]


if __name__ == "__main__":
    sys.exit(run_command(main))
