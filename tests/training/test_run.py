"""Whole runs of a dozen steps: folders, retention, sweeps, and everything that must stop one."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moss.config.compose import from_yaml, run_command
from moss.config.identity import run_folder
from moss.config.train import TrainConfig
from moss.data.batch import TokenBatch
from moss.data.loader import TokenStream
from moss.data.shard import ShardDataset
from moss.errors import CheckpointError, ConfigError, DataError
from moss.model.checkpoint import load_generator
from moss.training.checkpoint import StepCheckpoints, complete_checkpoints
from moss.training.lit_data import order_fingerprint
from moss.training.lit_lm import LitGenerator
from moss.training.run import train
from tests.tiny import tiny_config, tiny_overrides, tiny_shards


class Stop(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards")


def steps_of(folder: Path) -> list[int]:
    return [int(path.name[-8:]) for path in complete_checkpoints(folder / "checkpoints")]


def logged(folder: Path) -> list[tuple[str, str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [(step, key, value) for step, key, value in list(csv.reader(file))[1:] if not key.startswith("perf/")]


def test_what_a_run_leaves(shards: Path, tmp_path: Path) -> None:
    config = tiny_config(shards, tmp_path / "runs", checkpoint__keep=2, logger__tensorboard=True)
    folder = train(config)
    assert folder == run_folder(config)
    assert (tmp_path / "runs" / "latest").resolve() == folder.resolve()
    assert steps_of(folder) == [8, 12]
    assert from_yaml(TrainConfig, folder / "config.yaml") == config
    record = json.loads((folder / "run.json").read_text())
    assert record["seed"] == 0
    assert record["starts"][0]["versions"]["torch"]
    assert any("tfevents" in path.name for path in (folder / "tensorboard").iterdir())
    keys = {key for _, key, _ in logged(folder)}
    assert {"train/loss", "train/loss/text", "train/loss/codebook_03", "val/loss", "val/loss/codebook_00"} <= keys
    assert {"optim/lr", "optim/grad_norm"} <= keys
    rates = [float(value) for _, key, value in logged(folder) if key == "optim/lr"]
    assert rates[:2] == pytest.approx([config.optim.lr / 2, config.optim.lr])
    model, card = load_generator(folder / "checkpoints" / "step-00000012")
    assert (card.step, card.tokenizer["fingerprint"]) == (12, "0123456789abcdef")
    assert model.config == config.model
    # Started again it has nothing to do.
    before = (folder / "metrics.csv").read_bytes()
    assert train(config) == folder
    assert (folder / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize("place", ["_save", "_publish"])
def test_stops_around_a_validated_checkpoint_lose_and_double_no_row(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    both = {"schedule__validate_every_steps": 4, "checkpoint__every_steps": 4, "schedule__max_steps": 8}
    whole = tiny_config(shards, tmp_path / "whole", **both)
    train(whole)
    stopped = tiny_config(shards, tmp_path / "stopped", **both)
    original = getattr(StepCheckpoints, place)

    def stop_after(self: StepCheckpoints, trainer: Any) -> None:
        original(self, trainer)
        if trainer.global_step == 4:
            raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(StepCheckpoints, place, stop_after)
        with pytest.raises(Stop):
            train(stopped)
    # Before its validation a checkpoint does not count.
    assert steps_of(run_folder(stopped)) == ([] if place == "_save" else [4])
    train(stopped)
    assert logged(run_folder(stopped)) == logged(run_folder(whole))
    assert [key for _, key, _ in logged(run_folder(whole))].count("val/loss") == 2


def test_a_sweep_gives_each_job_its_folder(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    words = tiny_overrides(shards, tmp_path / "runs", schedule__max_steps=3)
    words += ["-m", f"hydra.sweep.dir={tmp_path / 'sweep'}", "optim.lr=1e-3,2e-3"]
    assert run_command(TrainConfig, "train", train, words) == 0
    folders = [path for path in (tmp_path / "runs").iterdir() if not path.is_symlink()]
    assert len(folders) == 2
    assert {from_yaml(TrainConfig, folder / "config.yaml").optim.lr for folder in folders} == {1e-3, 2e-3}
    assert [steps_of(folder) for folder in folders] == [[3], [3]]


def test_a_non_finite_gradient_stops_before_the_optimizer(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(shards, tmp_path)
    training_step = LitGenerator.training_step
    seen: dict[str, Any] = {}

    def poisoned(self: LitGenerator, batch: Any, batch_idx: int) -> Any:
        loss = training_step(self, batch, batch_idx)
        if batch.step != 5:
            return loss
        seen.update(
            names=batch.utterance_ids, module=self, weights={k: v.clone() for k, v in self.state_dict().items()}
        )
        return loss * float("nan")

    with monkeypatch.context() as patched:
        patched.setattr(LitGenerator, "training_step", poisoned)
        with pytest.raises(DataError) as caught:
            train(config)
    assert f"step 5: the gradient is not finite; utterances: {', '.join(seen['names'])}. Look" in str(caught.value)
    after = seen["module"].state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in seen["weights"].items())
    assert steps_of(run_folder(config)) == [4]


def test_data_that_cannot_be_read_costs_no_checkpoint(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(shards, tmp_path)
    batch = TokenStream.batch

    def unreadable(self: TokenStream, step: int, micro_batch: int) -> TokenBatch:
        # Lightning fetches one row ahead: this one is wanted when step 4 begins, after the checkpoint was saved.
        if step == 5:
            raise DataError("shard-000000.tar:u003: truncated")
        return batch(self, step, micro_batch)

    monkeypatch.setattr(TokenStream, "batch", unreadable)
    with pytest.raises(DataError, match="truncated"):
        train(config)
    assert steps_of(run_folder(config)) == [4]


def test_other_shards_under_a_run(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_shards(tmp_path / "shards")
    config = tiny_config(folder, tmp_path / "runs")
    training_step = LitGenerator.training_step

    def step_until_5(self: LitGenerator, batch: Any, batch_idx: int) -> Any:
        if batch.step == 5:
            raise Stop
        return training_step(self, batch, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(LitGenerator, "training_step", step_until_5)
        with pytest.raises(Stop):
            train(config)
    then = ShardDataset(folder).fingerprint
    tiny_shards(folder, seed=1)
    now = ShardDataset(folder).fingerprint
    changed = rf"the shards have changed since the checkpoint \(fingerprint {then}/\w+ then, {now}/\w+ now\); restore"
    with pytest.raises(CheckpointError, match=changed):
        train(config)
    assert steps_of(run_folder(config)) == [4]


def test_an_index_in_another_order_is_other_data(shards: Path) -> None:
    data = [ShardDataset(shards), ShardDataset(shards)]
    data[1].entries.reverse()
    prints = [order_fingerprint([dataset]) for dataset in data]
    assert prints[0] != prints[1]
    assert prints[0].split("/")[0] == prints[1].split("/")[0]


def test_weights_to_start_from(shards: Path, tmp_path: Path) -> None:
    first = train(tiny_config(shards, tmp_path / "first", schedule__max_steps=2))
    start = first / "checkpoints" / "step-00000002"
    second = train(tiny_config(shards, tmp_path, schedule__max_steps=2, model__init_from=start, optim__lr=1e-30))
    weights = [load_file(path / "checkpoints/step-00000002/model.safetensors") for path in (first, second)]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                "model__vocab_size": 1023,
                "text_tokenizer__kind": "compact",
                "model__audio_assistant_delay_slot_token_id": 1,
            },
            "model.vocab_size=1023 is smaller than the compact text tokenizer's 1024 ids",
        ),
        (
            {"model__pad_token_id": 5, "model__audio_end_token_id": 7},
            "the compact text tokenizer gives these control ids of the model to ordinary text: pad=5, audio_end=7; cho",
        ),
        (
            {"optim__freeze": "['emb_exd.*']"},
            r"optim.freeze: 'emb_exd\.\*' matches no parameter; near names: emb_ext",
        ),
        ({"optim__lr_scales": "{head: 2.0}"}, r"optim.lr_scales: 'head' matches no parameter; near names: lm_heads"),
        (
            {"optim__freeze": "['*']"},
            r"optim.freeze: \* leaves no parameter to train; drop a pattern",
        ),
        (
            {"lora__rank": 2, "lora__train": "['emb_ext.*']", "optim__freeze": "['emb_ext.1.*']"},
            r"optim.freeze: 'emb_ext\.1\.\*' and lora.train: 'emb_ext\.\*' both match emb_ext\.1\.weight; drop one",
        ),
        (
            {"task": "tokenizer", "lora__rank": 4, "schedule__regenerate_examples": 2},
            "lora.rank=4, schedule.regenerate_examples=2: belongs to task=generator; leave it out",
        ),
        ({"parallel__accelerator": "cuda"}, "parallel.accelerator=cuda: no CUDA device is available here; choose auto"),
    ],
)
def test_settings_that_contradict_what_is_there(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=message):
        train(tiny_config(shards, tmp_path, **changes))


def test_a_run_without_validation_examples(shards: Path, tmp_path: Path) -> None:
    folder = train(tiny_config(shards, tmp_path, data__validation_split="nobody", schedule__max_steps=5))
    assert steps_of(folder) == [4, 5]
    assert not [key for _, key, _ in logged(folder) if key.startswith("val/")]
