"""From prompts to codes: one entry for every architecture's decode loop, and what the loops have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from moss.config.generation import GenerationConfig, SamplerConfig
from moss.config.model import DelayModelConfig, LocalModelConfig, LocalV15ModelConfig, RealtimeModelConfig
from moss.errors import GenerationError
from moss.generation.segments import AudioSegment
from moss.model.interface import Generator

if TYPE_CHECKING:
    from moss.generation.realtime_loop import RealtimePrompt
    from moss.model.delay import DelayModel
    from moss.model.local import LocalModel
    from moss.model.local_v15 import LocalV15Model
    from moss.model.realtime import RealtimeModel

OnFrames = Callable[[int, Tensor], None]
"""Is given a request's index and its newest codes (frames, codebooks) as soon as they exist."""
ShouldStop = Callable[[], bool]
"""Is asked before each step; True ends what is unfinished."""

RUNAWAY_CHECK_STEPS = 8
"""Looking for repetition at every step would cost a copy to the host each."""


class StopReason(StrEnum):
    """Why a request's decoding ended."""

    end = "end"
    """The model ended it."""
    max_frames = "max_frames"
    runaway = "runaway"
    """The model only repeated itself."""
    cancelled = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Generated:
    """What a loop made of one prompt.

    Attributes:
        segments: Blocks of audio in order.
        stop_reason: Why it ended.
        rows: Positions of the assistant's turn from its first row on, shape (positions, channels), on the CPU.
        num_given: How many of them stood in the prompt already.
    """

    segments: list[AudioSegment]
    stop_reason: StopReason
    rows: Tensor
    num_given: int


def generate(
    model: Generator,
    prompts: "Sequence[Tensor] | Sequence[RealtimePrompt]",
    seeds: Sequence[int],
    config: GenerationConfig,
    *,
    max_frames: Sequence[int] | None = None,
    on_frames: OnFrames | None = None,
    should_stop: ShouldStop | None = None,
) -> list[Generated]:
    """Decode a batch of prompts; a request's result does not depend on its neighbours.

    Args:
        model: In eval mode.
        prompts: Positions of each request (positions, channels), generation or continuation mode; for Realtime models
            a `RealtimePrompt` each.
        seeds: Seed of each request's own draws.
        config: Samplers, limits, compatibility, kernels.
        max_frames: Most new frames of each request; None takes `config.max_frames` for all.
        on_frames: Called as soon as whole frames of a request exist.
        should_stop: Asked before each step; True ends every unfinished request as cancelled.

    Raises:
        GenerationError: A prompt and its frames overrun the model, or a setting that the model does not have.
    """
    assert len(prompts) == len(seeds) > 0, "one seed for each prompt"
    assert max_frames is None or len(max_frames) == len(prompts), "one limit for each prompt"
    budgets = frame_budgets(config, max_frames, len(prompts))
    if isinstance(model.config, RealtimeModelConfig):
        from moss.generation.realtime_loop import generate_realtime

        turns = cast("Sequence[RealtimePrompt]", prompts)
        realtime = cast("RealtimeModel", model)
        return generate_realtime(
            realtime, turns, seeds, config, max_frames=budgets, on_frames=on_frames, should_stop=should_stop
        )
    rows = cast("Sequence[Tensor]", prompts)
    if isinstance(model.config, LocalModelConfig | LocalV15ModelConfig):
        from moss.generation.local_loop import generate_local

        local = cast("LocalModel | LocalV15Model", model)
        return generate_local(
            local, rows, seeds, config, max_frames=budgets, on_frames=on_frames, should_stop=should_stop
        )
    assert isinstance(model.config, DelayModelConfig)
    from moss.generation.delay_loop import generate_delay

    delay = cast("DelayModel", model)
    return generate_delay(delay, rows, seeds, config, max_frames=budgets, on_frames=on_frames, should_stop=should_stop)


def frame_budgets(config: GenerationConfig, max_frames: Sequence[int] | None, count: int) -> list[int]:
    """Most new frames of each of `count` requests.

    Raises:
        GenerationError: A limit below 1.
    """
    budgets = [config.max_frames] * count if max_frames is None else list(max_frames)
    for index, budget in enumerate(budgets):
        if budget < 1:
            raise GenerationError(f"request {index}: max_frames must be at least 1, got {budget}")
    return budgets


def check_room(prompts: Sequence[Tensor], new_positions: Sequence[int], max_positions: int) -> None:
    """Refuse prompts that leave too little room.

    Raises:
        GenerationError: Names the numbers.
    """
    for prompt, new in zip(prompts, new_positions, strict=True):
        if len(prompt) + new > max_positions:
            raise GenerationError(
                f"a prompt of {len(prompt)} positions and {new} new ones overrun the model's {max_positions}; "
                "shorten the text or the reference, or lower max_frames"
            )


def seed_tensor(seeds: Sequence[int], device: torch.device) -> Tensor:
    """Any integers as int64, modulo 2**64."""
    return torch.tensor([(seed + 2**63) % 2**64 - 2**63 for seed in seeds], dtype=torch.long, device=device)


def codebook_samplers(config: GenerationConfig, num_codebooks: int) -> list[SamplerConfig]:
    """The sampler of each codebook.

    Raises:
        GenerationError: `codebooks` of another length.
    """
    if config.codebooks is None:
        return [config.audio] * num_codebooks
    if len(config.codebooks) != num_codebooks:
        raise GenerationError(
            f"codebooks: expected {num_codebooks} samplers, one for each codebook that is spoken, got "
            f"{len(config.codebooks)}"
        )
    return list(config.codebooks)
