"""What every decode loop shares, and which loop a model gets."""

from typing import Any

import pytest
import torch

from moss.config.generation import GenerationConfig, SamplerConfig
from moss.errors import GenerationError
from moss.generation import delay_loop, local_loop, realtime_loop
from moss.generation.loop import check_room, codebook_samplers, frame_budgets, generate, seed_tensor
from moss.model.build import build_model
from tests.model.toys import CONFIGS

CPU = torch.device("cpu")


@pytest.mark.parametrize("architecture", list(CONFIGS))
def test_each_architecture_has_its_loop(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, dict[str, Any]]] = []
    modules = {"delay": delay_loop, "local": local_loop, "local_v15": local_loop, "realtime": realtime_loop}
    for module, name in ((delay_loop, "delay"), (local_loop, "local"), (realtime_loop, "realtime")):
        monkeypatch.setattr(
            module, f"generate_{name}", lambda *_, module=module, **options: called.append((module.__name__, options))
        )
    generate(build_model(CONFIGS[architecture]), [torch.zeros(2, 4)], [0], GenerationConfig(max_frames=7))
    ((name, options),) = called
    assert name == modules[architecture].__name__
    assert options["max_frames"] == [7]


def test_budgets() -> None:
    config = GenerationConfig(max_frames=9)
    assert frame_budgets(config, None, 3) == [9, 9, 9]
    assert frame_budgets(config, [1, 2], 2) == [1, 2]
    with pytest.raises(GenerationError, match="request 1: max_frames must be at least 1, got -4"):
        frame_budgets(config, [1, -4], 2)


def test_room() -> None:
    prompts = [torch.zeros(5, 3), torch.zeros(20, 3)]
    check_room(prompts, [95, 80], 100)
    message = "a prompt of 20 positions and 81 new ones overrun the model's 100; shorten the text or the reference, or "
    with pytest.raises(GenerationError, match=message + "lower max_frames"):
        check_room(prompts, [95, 81], 100)


def test_seeds_of_any_size() -> None:
    made = seed_tensor([0, -1, 2**63, 2**64 + 5, 2**63 - 1], CPU)
    assert made.dtype == torch.int64
    assert made.tolist() == [0, -1, -(2**63), 5, 2**63 - 1]


def test_codebook_samplers() -> None:
    config = GenerationConfig(audio=SamplerConfig(temperature=1.5, top_k=3))
    assert codebook_samplers(config, 2) == [config.audio, config.audio]
    own = [SamplerConfig(temperature=0.5, top_p=0.3), SamplerConfig(top_k=7, repetition_penalty=1.2)]
    assert codebook_samplers(GenerationConfig(audio=config.audio, codebooks=own), 2) == own
    with pytest.raises(
        GenerationError, match="codebooks: expected 3 samplers, one for each codebook that is spoken, go"
    ):
        codebook_samplers(GenerationConfig(codebooks=own), 3)


def test_one_seed_for_each_prompt() -> None:
    with pytest.raises(AssertionError, match="one seed for each prompt"):
        generate(build_model(CONFIGS["delay"]), [torch.zeros(2, 4)], [0, 1], GenerationConfig())
