"""Two processes that share a run compute what one computes, and only the first writes."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moss.config.identity import run_folder
from moss.errors import ConfigError
from moss.training.processes import Processes, add_gradients, any_of_all, processes, total, trainer_devices
from moss.training.run import train
from tests.tiny import tiny_config, tiny_shards
from tests.training.tokenizer_runs import EVERYTHING, rows, run_apart, tiny_run

TORCHRUN = {"WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    # Five segments: one process has three of them, the other two.
    # The high floor keeps bands next to silence out, whose logarithms make much of the last bit of a sum.
    changes = EVERYTHING | {"segments_per_step": 5, "waveform_weight": 5.0, "mel_floor": 1e-3}
    # With some seeds a segment comes to a kink of a loss, where the last bit of a sum becomes 1e-4; not with this one.
    one, two = (
        dataclasses.replace(tiny_run(tmp_path / "data", tmp_path / name, **changes), seed=4) for name in ("one", "two")
    )
    assert run_apart(one) == [0]
    assert run_apart(two, others=1) == [0, 0]
    expected = {(int(step), key): float(value) for step, key, value in rows(run_folder(one))}
    got = {(int(step), key): float(value) for step, key, value in rows(run_folder(two))}
    assert len(rows(run_folder(two))) == len(got), "written twice"
    assert got.keys() == expected.keys()
    for place, value in expected.items():
        assert got[place] == pytest.approx(value, rel=1e-6 if "loss" in place[1] else 1e-4, abs=1e-6), place
    weights = [load_file(run_folder(run) / "checkpoints" / "step-00000012" / "model.safetensors") for run in (one, two)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    assert (run_folder(two) / "heldout.json").is_file()


def test_torchrun_and_srun_are_understood() -> None:
    assert processes({}) == Processes()
    assert processes({"WORLD_SIZE": "1", "RANK": "0"}) == Processes()
    assert processes(TORCHRUN) == Processes(count=8, rank=5, per_node=4)
    srun = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "0", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}
    assert processes(srun) == Processes(count=8, rank=0, per_node=4)
    assert processes({**srun, "SLURM_STEP_NUM_TASKS": "1"}) == Processes()
    assert (processes(srun).is_first, processes(TORCHRUN).is_first, processes(TORCHRUN).num_nodes) == (True, False, 2)


def test_half_an_environment_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"WORLD_SIZE=2 but RANK, LOCAL_WORLD_SIZE is not set; start .* torchrun"):
        processes({"WORLD_SIZE": "2"})
    with pytest.raises(ConfigError, match=r"WORLD_SIZE=8 does not fit RANK=8 and LOCAL_WORLD_SIZE=4"):
        processes({**TORCHRUN, "RANK": "8"})
    with pytest.raises(ConfigError, match=r"WORLD_SIZE=8 does not fit RANK=5 and LOCAL_WORLD_SIZE=3"):
        processes({**TORCHRUN, "LOCAL_WORLD_SIZE": "3"})


def test_shares_are_everything_once() -> None:
    shares = [Processes(3, rank, 3).share(range(10)) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == list(range(10))
    assert {len(share) for share in shares} == {3, 4}


def test_one_process_is_left_alone() -> None:
    values, weight = torch.tensor([1.0, 2.0]), torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([3.0, 4.0])
    add_gradients([weight])
    assert total(values) is values
    assert weight.grad.tolist() == [3.0, 4.0]
    assert (any_of_all(True, torch.device("cpu")), any_of_all(False, torch.device("cpu"))) == (True, False)
    assert trainer_devices(Processes()) == {"devices": 1}


def test_a_generator_refuses_company(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="task=generator trains in one process so far, 8 were started; start one"):
        train(tiny_config(tiny_shards(tmp_path / "shards"), tmp_path / "runs"))


def test_more_processes_than_segments_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_run(tmp_path / "data", tmp_path / "runs", **EVERYTHING)
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    message = (
        "tokenizer_training.segments_per_step: 2 segments cannot be shared by 8 processes; raise it, or start fewer"
    )
    with pytest.raises(ConfigError, match=message):
        train(config)
    assert not run_folder(config).exists(), "another process than the first has written"
