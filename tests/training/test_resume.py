"""A killed run goes on as if nothing had happened: the same rows, the same losses, bit for bit."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from moss.config.identity import run_folder
from moss.training.checkpoint import complete_checkpoints
from tests.tiny import tiny_config, tiny_overrides, tiny_shards

ROOT = Path(__file__).parents[2]


def losses(folder: Path) -> list[tuple[str, str, str]]:
    """Everything logged but speed."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return [(step, key, value) for step, key, value in rows if not key.startswith("perf/")]


def start(overrides: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "train.py", *overrides]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.parametrize("rows_per_step", [1, 2])
def test_kill_and_resume_is_bit_identical(tmp_path: Path, rows_per_step: int) -> None:
    shards = tiny_shards(tmp_path / "shards")
    extra = {"data__micro_batches_per_step": rows_per_step, "data__duration_frac": 0.5}
    whole = start(tiny_overrides(shards, tmp_path / "whole", **extra))
    output, _ = whole.communicate(timeout=240)
    assert whole.returncode == 0, output.decode()

    overrides = tiny_overrides(shards, tmp_path / "killed", **extra)
    folder = run_folder(tiny_config(shards, tmp_path / "killed", **extra))
    killed = start(overrides)
    kill_at = random.Random(rows_per_step).randrange(5, 11)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and killed.poll() is None:
        if (folder / "metrics.csv").is_file() and f"\n{kill_at}," in (folder / "metrics.csv").read_text():
            break
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    done = complete_checkpoints(folder / "checkpoints")
    assert done, "killed before its first checkpoint"
    assert done[-1].name != "step-00000012", "ended before it was killed"

    again = start(overrides)
    output, _ = again.communicate(timeout=240)
    assert again.returncode == 0, output.decode()
    assert b"resuming from" in output
    other = run_folder(tiny_config(shards, tmp_path / "whole", **extra))
    assert other.name == folder.name
    assert losses(folder) == losses(other)
    assert {row[0] for row in losses(folder) if row[1] == "train/loss"} == {str(step) for step in range(12)}
    ends = [complete_checkpoints(run / "checkpoints")[-1] / "trainer.pt" for run in (folder, other)]
    states = [torch.load(path, weights_only=True) for path in ends]
    assert states[0]["moss_cursor"] == states[1]["moss_cursor"] == 12
    for mine, theirs in zip(states[0]["optimizer_states"], states[1]["optimizer_states"], strict=True):
        for key, entry in mine["state"].items():
            assert all(torch.equal(value, theirs["state"][key][name]) for name, value in entry.items())
