"""Runs of a tokenizer that take a second, in processes of their own that can be killed and have company."""

import csv
import functools
import multiprocessing
import os
import signal
import socket
from pathlib import Path
from typing import Any

import torch

from moss.config.compose import load_config
from moss.config.schema import build, to_plain
from moss.config.train import TrainConfig
from moss.data.manifest import Utterance, write_manifest
from tests.recordings import write_tone
from tests.tokenizer.conftest import small_settings

DISCRIMINATORS = {"periods": [2, 3], "period_channels": [4, 8], "stft_windows": [64], "stft_channels": 4}
SEMANTIC = {
    "weight": 0.5,
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "intermediate_size": 32,
    "text_tokenizer": {"kind": "compact"},
}
ADVERSARIAL: dict[str, Any] = {
    "discriminator": {"from_step": 6, "warmup_steps": 2, "segments_per_step": 2, "lr": 1e-3, **DISCRIMINATORS}
}
EVERYTHING: dict[str, Any] = {
    **ADVERSARIAL,
    "semantic": SEMANTIC,
    "ema_decay": 0.9,
    "waveform_weight": 5.0,
    "gain_db": 3,
}


def clip(folder: Path, name: str, seconds: float, split: str = "train", channels: int = 1) -> Utterance:
    audio = write_tone(folder / f"{name}.wav", seconds, channels=channels)
    return Utterance(id=name, audio=str(audio), text=name, language="en", duration_s=seconds, split=split)


def tiny_run(folder: Path, runs: Path, **changes: object) -> TrainConfig:
    """Twelve steps: two without codes, then codebooks fitted, then dead codes moved every three steps.

    Args:
        folder: Of the manifest, which is made if need be: three clips longer than a segment and two that are whole.
        runs: Where runs go.
        changes: Of `tokenizer_training`.
    """
    if not (folder / "utterances.jsonl").is_file():
        clips = [clip(folder, f"t{i}", 0.8) for i in range(3)] + [clip(folder, "h", 1.2, "heldout")]
        clips += [clip(folder, f"whole{i}", 0.19) for i in range(2)]
        write_manifest(folder / "utterances.jsonl", clips)
    plain = to_plain(load_config(TrainConfig, "train", ["experiment=tokenizer_xs"]))
    plain["runs_dir"] = str(runs)
    plain["tokenizer"] = small_settings()
    training = {
        "manifest": str(folder / "utterances.jsonl"),
        "segment_s": 0.2,
        "segments_per_step": 4,
        "bypass_steps": 2,
        "init_frames": 64,
        "replace_every_steps": 3,
        "codebook_dropout_prob": 0.5,
        "audio_every_s": 0.0,
    }
    plain["tokenizer_training"] |= training
    for name, value in changes.items():
        nested = plain["tokenizer_training"][name]
        plain["tokenizer_training"][name] = nested | value if isinstance(value, dict) else value
    plain["optim"] |= {"warmup_steps": 2}
    plain["schedule"] |= {"max_steps": 12, "validate_every_steps": 6}
    plain["checkpoint"] |= {"every_steps": 2, "keep": 9}
    plain["parallel"] |= {"accelerator": "cpu", "cpu_threads": 1}
    plain["logger"] |= {"every_steps": 1, "tensorboard": False}
    return build(TrainConfig, plain)


def rows(folder: Path) -> list[list[str]]:
    """metrics.csv without its header."""
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Paths at which two trees of dicts, lists, tensors and numbers are not the same bits."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{where}: keys {one.keys() ^ other.keys()}"]
        return [line for key in one for line in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, list | tuple) and len(one) == len(other):
        return [
            line for i, (a, b) in enumerate(zip(one, other, strict=True)) for line in differences(a, b, f"{where}/{i}")
        ]
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if same else [where]


def run_apart(config: TrainConfig, *, kill_at: int | None = None, others: int = 0) -> list[int]:
    """Train in new processes; returns their exit codes.

    Args:
        config: The run.
        kill_at: The process ends itself by SIGKILL before it trains on this step.
        others: Further processes that share the run.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    count = 1 + others
    environments = [
        {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        for rank in range(count if others else 0)
    ]
    context = _context()
    started = [
        context.Process(target=_train, args=(to_plain(config), kill_at, environment))
        for environment in environments or [{}]
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=240)
        process.kill()
    return [process.exitcode for process in started]


@functools.cache
def _context() -> Any:
    """Imports are paid for once: processes are forks of one that has done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["moss.training.tokenizer_run", "tests.training.tokenizer_runs", "pystoi", "soxr"])
    return context


def _train(plain: dict[str, Any], kill_at: int | None, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from moss.training.lit_tokenizer import LitTokenizer
    from moss.training.run import train
    from moss.training.tokenizer_watch import CodebookPlot

    # Drawing takes longer than training here.
    del CodebookPlot.on_validation_end
    # Read when lightning is imported, which was before the fork.
    rank_zero_only.rank = int(environment.get("RANK", 0))  # type: ignore[attr-defined]
    original = LitTokenizer.on_train_batch_start

    def dies(self: LitTokenizer, batch: Any, batch_idx: int) -> None:
        if batch.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, batch, batch_idx)

    LitTokenizer.on_train_batch_start = dies  # type: ignore[method-assign]
    train(build(TrainConfig, plain))
