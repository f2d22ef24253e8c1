"""Runs with every option that changes what is trained: they resume bit for bit and train what they say."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moss.config.identity import run_folder
from moss.config.train import TrainConfig
from moss.training.checkpoint import complete_checkpoints
from moss.training.lit_lm import LitGenerator
from moss.training.run import train
from tests.tiny import CARD, tiny_shards
from tests.training.small import ARCHITECTURES, DEPTH, small_config


class Stop(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards")


def logged(folder: Path) -> list[tuple[str, str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [(step, key, value) for step, key, value in list(csv.reader(file))[1:] if not key.startswith("perf/")]


def stopped_and_resumed(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that is stopped after its first checkpoint and goes on."""
    training_step = LitGenerator.training_step

    def step_until_5(self: LitGenerator, batch: Any, batch_idx: int) -> Any:
        if batch.step == 5:
            raise Stop
        return training_step(self, batch, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(LitGenerator, "training_step", step_until_5)
        with pytest.raises(Stop):
            train(config)
    assert [path.name for path in complete_checkpoints(run_folder(config) / "checkpoints")] == ["step-00000004"]
    return train(config)


def assert_same_end(first: Path, second: Path) -> None:
    """Metrics, weights and optimizer states are bitwise the same."""
    assert logged(first) == logged(second)
    ends = [complete_checkpoints(folder / "checkpoints")[-1] for folder in (first, second)]
    assert (ends[0] / "model.safetensors").read_bytes() == (ends[1] / "model.safetensors").read_bytes()
    states = [torch.load(end / "trainer.pt", weights_only=True)["optimizer_states"][0] for end in ends]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for key, entry in states[0]["state"].items():
        assert all(torch.equal(value, states[1]["state"][key][name]) for name, value in entry.items())


OPTIONS: dict[str, tuple[str, dict[str, object]]] = {
    "groups": ("delay", {"optim__freeze": "['lm_heads.0.*']", "optim__lr_scales": "{emb_ext.*: 0.1, *norm*: 3.0}"}),
    "adapters": ("local", {"lora__rank": 2, "lora__dropout": 0.2, "lora__train": "['layer_norm_before_lm_heads.*']"}),
    "depth": ("realtime", {"loss__depth_frac": 0.3, "data__micro_batches_per_step": 2}),
    "dropout": ("local_v15", {"data__sequence_dropout_prob": 0.7, "loss__channel_weights": "[1,8]"}),
    "recompute": ("local", {"parallel__gradient_checkpointing": True, "data__sequence_dropout_prob": 0.5}),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_resume_with_an_option(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    architecture, extra = OPTIONS[option]
    whole = train(small_config(architecture, shards, tmp_path / "whole", **extra))
    stopped = stopped_and_resumed(small_config(architecture, shards, tmp_path / "stopped", **extra), monkeypatch)
    assert_same_end(whole, stopped)


@pytest.mark.parametrize("architecture", DEPTH)
def test_the_whole_share_is_the_plain_loss(shards: Path, tmp_path: Path, architecture: str) -> None:
    runs = [
        train(small_config(architecture, shards, tmp_path / name, schedule__max_steps=3, **extra))
        for name, extra in [("plain", {}), ("whole", {"loss__depth_frac": 1.0}), ("half", {"loss__depth_frac": 0.5})]
    ]
    assert logged(runs[0]) == logged(runs[1])
    assert logged(runs[0]) != logged(runs[2])


def test_a_weighted_mixture_resumes(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tiny_shards(tmp_path / "other", num_utterances=7, seed=5)
    mixture = f"[{{shards: {shards}, weight: 1.0}},{{shards: {other}, weight: 3.0}}]"
    extra = {"data__shards": "[]", "data__mixture": mixture}
    whole = train(small_config("delay", shards, tmp_path / "whole", **extra))
    stopped = stopped_and_resumed(small_config("delay", shards, tmp_path / "stopped", **extra), monkeypatch)
    assert_same_end(whole, stopped)
    alone = train(small_config("delay", shards, tmp_path / "alone"))
    assert logged(alone) != logged(whole)


def test_frozen_weights_stay_and_the_rest_moves(shards: Path, tmp_path: Path) -> None:
    freeze = "['language_model.layers.0.*', 'emb_ext.2.*']"
    first = train(small_config("delay", shards, tmp_path, schedule__max_steps=2, optim__freeze=freeze))
    last = train(small_config("delay", shards, tmp_path, schedule__max_steps=6, optim__freeze=freeze))
    weights = [load_file(complete_checkpoints(run / "checkpoints")[-1] / "model.safetensors") for run in (first, last)]
    same = {name for name, tensor in weights[0].items() if torch.equal(tensor, weights[1][name])}
    assert same == {name for name in weights[0] if ".layers.0." in name or name.startswith("emb_ext.2.")}


def test_shards_with_more_codebooks_than_the_model(tmp_path: Path) -> None:
    wide = tiny_shards(tmp_path / "wide", card=replace(CARD, num_codebooks=6))
    for architecture in ARCHITECTURES:
        folder = train(small_config(architecture, wide, tmp_path, schedule__max_steps=2))
        assert complete_checkpoints(folder / "checkpoints")
