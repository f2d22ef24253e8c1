"""Bad input to training and generation, one test per item: exit code, message, and what remains on disk."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from moss.command import run_command
from moss.config.identity import run_folder
from moss.data.files import read_journal
from moss.generation.__main__ import main as generate
from moss.training.checkpoint import complete_checkpoints
from tests.generation.toy import TEXTS, build_humming, write_checkpoint
from tests.recordings import REPOSITORY
from tests.tiny import CARD, tiny_config, tiny_overrides, tiny_shards
from train import main as train_main

Train = Callable[..., int]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture
def run_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """`train.py` inside this process; runs go below tmp_path/runs."""

    def call(shards: Path, **extra: object) -> int:
        monkeypatch.setattr(sys, "argv", ["train.py", *tiny_overrides(shards, tmp_path / "runs", **extra)])
        return train_main()

    return call


def steps_of(folder: Path) -> list[int]:
    return [int(path.name[-8:]) for path in complete_checkpoints(folder / "checkpoints")]


def unfinished(folder: Path) -> list[str]:
    """Temporary files and folders anywhere below; a run's lock stays."""
    return [path.name for path in folder.rglob(".*") if path.name != ".lock"]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def wait_for(there: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not there() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)


def test_an_utterance_longer_than_the_context(
    run_train: Train, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in shards.iterdir()}
    assert run_train(shards, model__max_positions=38) == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: model.max_positions=38 is shorter than utterance u0")
    assert error.endswith(f" positions) in {shards}; raise it or set data.overlong=drop")
    assert run_train(shards, data__positions_per_micro_batch=38) == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: data.positions_per_micro_batch=38 is shorter than utterance u0")
    assert {path: path.read_bytes() for path in shards.iterdir()} == before
    assert list((tmp_path / "runs").rglob("step-*")) == []


def test_a_checkpoint_of_another_architecture_in_generation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A tokenizer's folder as it is published: weights and a config.json.
    published = tmp_path / "cat"
    published.mkdir()
    save_file({"encoder.0.weight": torch.zeros(2)}, published / "model.safetensors")
    (published / "config.json").write_text('{"model_type": "moss-audio-tokenizer"}')
    words = ["--text", "hello", "--output", str(tmp_path / "out"), "--checkpoint", str(published)]
    assert run_command(generate, words) == 4
    message = f"error: {published}/config.json: model_type 'moss-audio-tokenizer' is no generator of this family"
    assert capsys.readouterr().err.startswith(message)
    # A tokenizer trained here, and a generator that this program does not have.
    card = {"format_version": 2, "architecture": "vocoder"}
    known = "delay, local, local_v15, realtime"
    for content, told in [
        (
            {"kind": "tokenizer", "step": 5},
            "format version None, this program reads 1 and 2; use the version of moss that wrote it",
        ),
        (card, f"architecture 'vocoder' is not a generator; expected one of {known}; choose the folder of a generator"),
    ]:
        (published / "moss.json").write_text(json.dumps(content))
        assert run_command(generate, words) == 4
        assert capsys.readouterr().err == f"error: {published / 'moss.json'}: {told}\n"
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_architecture_in_training(
    run_train: Train, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "start"
    start.mkdir()
    save_file({"encoder.0.weight": torch.zeros(2), "emb_ext.0.weight": torch.zeros(3)}, start / "model.safetensors")
    assert run_train(shards, model__init_from=start) == 4
    error = capsys.readouterr().err
    assert f"error: {start / 'model.safetensors'}: weights of another model:\n" in error
    assert "\n  missing lm_heads.4.weight\n" in error
    assert "\n  unexpected encoder.0.weight\n" in error
    assert "\n  emb_ext.0.weight has shape (3,), the model (1025, 32)\n" in error
    assert list((tmp_path / "runs").rglob("step-*")) == []


def test_shards_of_two_tokenizers_in_one_mixture(
    run_train: Train, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_shards(tmp_path / "other", card=replace(CARD, fingerprint="fedcba9876543210"))
    assert run_train(shards, data__shards=f"[{shards},{other}]") == 3
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: shards of two tokenizers in one mixture: {shards} is test 0123456789abcdef (4 codebooks), {other} is "
        "test fedcba9876543210 (4 codebooks); encode both with the same tokenizer"
    )
    assert list((tmp_path / "runs").rglob("step-*")) == []


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """After it is called, every file of this process ends at 300 kB, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_disk_space_during_a_checkpoint(
    run_train: Train,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    full_disk: Callable[[], None],
) -> None:
    import moss.training.checkpoint as saving

    save_weights, limits = saving.save_weights, resource.getrlimit(resource.RLIMIT_FSIZE)
    folder = run_folder(tiny_config(shards, tmp_path / "runs"))

    def fill_at_8(state: dict[str, torch.Tensor], target: Path) -> None:
        if target.name.endswith("8"):
            full_disk()
        save_weights(state, target)

    with monkeypatch.context() as patched:
        patched.setattr(saving, "save_weights", fill_at_8)
        assert run_train(shards) == 4
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {folder / 'checkpoints' / 'step-00000008'}: could not be written: no space left on the device; "
        "earlier checkpoints are kept, free space and start again"
    )
    assert steps_of(folder) == [4]
    assert unfinished(tmp_path / "runs") == []
    assert run_train(shards) == 0
    assert steps_of(folder)[-1] == 12


def test_ctrl_c_during_training(
    run_train: Train, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = {"schedule__max_steps": 120, "schedule__validate_every_steps": 1000, "checkpoint__every_steps": 4}
    folder = run_folder(tiny_config(shards, tmp_path / "runs", **long))
    process = subprocess.Popen(
        [sys.executable, "train.py", *tiny_overrides(shards, tmp_path / "runs", **long)],
        cwd=REPOSITORY,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has SIGINT ignored, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(lambda: bool(steps_of(folder)), process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "interrupted: finished work is kept; start the same command again to go on"
    assert "Traceback" not in errors
    kept = steps_of(folder)
    assert kept
    assert kept[-1] < 120
    assert run_train(shards, **long) == 0
    assert steps_of(folder)[-1] == 120
    assert unfinished(tmp_path / "runs") == []
    assert len(json.loads((folder / "run.json").read_text())["starts"]) == 2


def test_ctrl_c_during_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    requests, output, marker = tmp_path / "requests.jsonl", tmp_path / "out", tmp_path / "hangs"
    requests.write_text("".join(f'{{"id": "r{i}", "text": "{text}"}}\n' for i, text in enumerate(TEXTS)))
    words = ["--checkpoint", checkpoint, "--requests", requests, "--output", output, "--batch-size", "1"]
    words = [*map(str, words), "--max-frames", "40", "--temperature", "0", "--text-temperature", "0"]
    driver = f"""
import pathlib, runpy, signal, sys, time
import moss.generation.loading as loading
import moss.generation.speech_model as speaking
from tests.generation.toy import build_humming
signal.signal(signal.SIGINT, signal.default_int_handler)
loading.build_tokenizer = build_humming
decode, calls = speaking.generate, []
def hang_in_the_second(*arguments, **named):
    calls.append(1)
    if len(calls) == 2:
        pathlib.Path({str(marker)!r}).touch()
        time.sleep(600)
    return decode(*arguments, **named)
speaking.generate = hang_in_the_second
sys.argv = ["generation", *{words!r}]
runpy.run_module("moss.generation", run_name="__main__")
"""
    command = [sys.executable, "-c", driver]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for(marker.exists, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "interrupted: finished work is kept; start the same command again to go on"
    assert "Traceback" not in errors
    (made,) = read_journal(output / "generations.jsonl")
    first = (output / made["wav"]).stat().st_mtime_ns
    assert unfinished(output) == []

    monkeypatch.setattr("moss.generation.loading.build_tokenizer", build_humming)
    assert run_command(generate, words) == 0
    assert "2 of 2 made" in capsys.readouterr().out
    assert (output / made["wav"]).stat().st_mtime_ns == first
