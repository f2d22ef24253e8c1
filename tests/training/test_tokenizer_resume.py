"""A tokenizer's training that is killed goes on as if nothing had happened, in every stage."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moss.config.identity import run_folder
from tests.training.tokenizer_runs import EVERYTHING, differences, rows, run_apart, tiny_run

Undisturbed = Callable[[dict[str, Any]], Path]
LOSSES = {"mel": 0, "semantic": 0, "commitment": 2, "codebook": 2, "discriminator": 6, "adversarial": 8, "feature": 8}
"""First step of each loss."""
LAST = Path("checkpoints") / "step-00000012"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("speech")


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    done: dict[str, Path] = {}

    def run(changes: dict[str, Any]) -> Path:
        if repr(changes) not in done:
            config = tiny_run(data, tmp_path_factory.mktemp("runs"), **changes)
            assert run_apart(config) == [0]
            done[repr(changes)] = run_folder(config)
        return done[repr(changes)]

    return run


@pytest.mark.parametrize(
    ("changes", "kill_at"),
    [
        # In the bypass; then after codes have moved and been counted since, with step 8 coming again.
        pytest.param({"bypass_steps": 4}, [3, 9], id="bypass_and_coded"),
        # The discriminators learn from step 6 on, the generator hears of them from 8 on.
        pytest.param(EVERYTHING, [7, 11], id="adversarial_semantic_and_averages"),
    ],
)
def test_killed_and_resumed_is_bit_identical(
    undisturbed: Undisturbed, data: Path, tmp_path: Path, changes: dict[str, Any], kill_at: list[int]
) -> None:
    config = tiny_run(data, tmp_path, **changes)
    folder, whole = run_folder(config), undisturbed(changes)
    for step in kill_at:
        assert run_apart(config, kill_at=step) == [-signal.SIGKILL]
        assert not (folder / LAST).exists(), "ended before it was killed"
    assert run_apart(config) == [0]
    assert rows(folder) == rows(whole)
    assert {row[0] for row in rows(folder) if row[1] == "train/loss"} == {str(step) for step in range(12)}
    mine, theirs = (load_file(run / LAST / "model.safetensors") for run in (folder, whole))
    assert not differences(mine, theirs)
    states = [torch.load(run / LAST / "trainer.pt", weights_only=True) for run in (folder, whole)]
    for state in states:
        # Wall-clock times of the loop, and the class of what is not ours.
        state.pop("loops")
        state.pop("callbacks", None)
    assert not differences(states[0], states[1])
    expected = {"discriminator": "moss_adversary", "semantic": "moss_listener", "ema_decay": "moss_weights"}
    assert {key for key in states[0] if key.startswith("moss_")} == {"moss_cursor", "moss_codes"} | {
        key for name, key in expected.items() if name in changes
    }


def test_what_is_compared_did_change(undisturbed: Undisturbed) -> None:
    """Bit identity means something only if stages and averages change bits."""
    run = undisturbed(EVERYTHING)
    found = {(int(step), key): float(value) for step, key, value in rows(run)}
    first = {name: min(step for step, key in found if key == f"train/{name}") for name in LOSSES}
    assert first == LOSSES
    assert sum(value for (_, key), value in found.items() if key == "train/codes_moved") > 0
    averaged = load_file(run / LAST / "model.safetensors")
    state = torch.load(run / LAST / "trainer.pt", weights_only=True)
    assert averaged.keys() == state["moss_weights"].keys()
    assert len(differences(averaged, state["moss_weights"])) > 10
