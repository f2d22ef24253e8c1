"""A run that is stopped again right after it resumed: its checkpoints stay on step boundaries."""

from pathlib import Path
from typing import Any

import pytest
import torch

from moss.config.identity import run_folder
from moss.training.checkpoint import StepCheckpoints, complete_checkpoints
from moss.training.lit_lm import LitGenerator
from moss.training.run import train
from tests.tiny import tiny_config, tiny_shards


class Stop(Exception):
    """Stands for a kill."""


def test_stops_in_the_first_accumulated_step_after_a_resume_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = tiny_shards(tmp_path / "shards")
    whole = tiny_config(shards, tmp_path / "whole", data__micro_batches_per_step=2)
    train(whole)

    stopped = tiny_config(shards, tmp_path / "stopped", data__micro_batches_per_step=2)
    publish, training_step = StepCheckpoints._publish, LitGenerator.training_step
    rows_left = [0]

    def publish_and_stop(self: StepCheckpoints, trainer: Any) -> None:
        publish(self, trainer)
        if complete_checkpoints(run_folder(stopped) / "checkpoints"):
            raise Stop

    def step_until_stopped(self: LitGenerator, batch: Any, batch_idx: int) -> Any:
        if rows_left[0] == 0:
            raise Stop
        rows_left[0] -= 1
        return training_step(self, batch, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(StepCheckpoints, "_publish", publish_and_stop)
        with pytest.raises(Stop):
            train(stopped)
    with monkeypatch.context() as patched:
        rows_left[0] = 1
        patched.setattr(LitGenerator, "training_step", step_until_stopped)
        with pytest.raises(Stop):
            train(stopped)
    train(stopped)

    ends = [complete_checkpoints(run_folder(config) / "checkpoints")[-1] for config in (whole, stopped)]
    states = [torch.load(end / "trainer.pt", weights_only=True) for end in ends]
    assert [state["moss_cursor"] for state in states] == [12, 12]
    weights = [(end / "model.safetensors").read_bytes() for end in ends]
    assert weights[0] == weights[1]
