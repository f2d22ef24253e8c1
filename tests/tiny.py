"""Tiny shards and configurations that several tests train on."""

from pathlib import Path

import numpy as np

from moss.config.compose import load_config
from moss.config.train import TrainConfig
from moss.data.manifest import Utterance
from moss.data.shard_index import TokenizerCard
from moss.data.shard_writer import CodedUtterance, write_shards

CARD = TokenizerCard(
    name="test",
    fingerprint="0123456789abcdef",
    sampling_rate_hz=16000,
    samples_per_frame=1280,
    num_codebooks=4,
    codebook_size=1024,
)

WORDS = "one two three four five six seven eight nine ten press hash then star to hear your new messages".split()


def tiny_shards(folder: Path, num_utterances: int = 13, card: TokenizerCard = CARD, seed: int = 0) -> Path:
    """Shards with random codes; every fifth utterance is held out. A prime number of them by default."""
    random = np.random.default_rng(seed)
    coded = []
    for i in range(num_utterances):
        frames = int(random.integers(3, 9))
        text = " ".join(random.choice(WORDS, size=int(random.integers(1, 5)))) + f" {i}"
        utterance = Utterance(
            id=f"u{i:03d}",
            audio="",
            text=text,
            language="en",
            speaker="s",
            duration_s=frames * 0.08,
            split="heldout" if i % 5 == 4 else "train",
        )
        codes = random.integers(0, card.codebook_size, size=(frames, card.num_codebooks)).astype(np.uint16)
        coded.append(CodedUtterance(utterance=utterance, num_samples=frames * card.samples_per_frame, codes=codes))
    write_shards(folder, coded, card)
    return folder


def tiny_coded(
    name: str,
    text: str = "one two",
    frames: int = 4,
    *,
    language: str = "en",
    speaker: str = "s",
    split: str = "train",
    card: TokenizerCard = CARD,
    **extra: object,
) -> CodedUtterance:
    """One utterance with random codes that depend on its id."""
    random = np.random.default_rng(list(name.encode()))
    codes = random.integers(0, card.codebook_size, size=(frames, card.num_codebooks)).astype(np.uint16)
    utterance = Utterance(
        id=name, audio="", text=text, language=language, speaker=speaker, split=split, extra=dict(extra)
    )
    return CodedUtterance(utterance=utterance, num_samples=frames * card.samples_per_frame, codes=codes)


def tiny_overrides(shards: Path, runs: Path, **extra: object) -> list[str]:
    """Command-line words of a training run that takes a second."""
    values: dict[str, object] = {
        "name": "tiny",
        "runs_dir": runs,
        "data.shards": f"[{shards}]",
        "data.positions_per_micro_batch": 128,
        "model.num_codebooks": 4,
        "model.hidden_size": 32,
        "model.num_layers": 2,
        "model.num_heads": 2,
        "model.num_kv_heads": 1,
        "model.head_dim": 16,
        "model.intermediate_size": 48,
        "optim.warmup_steps": 2,
        "schedule.max_steps": 12,
        "schedule.validate_every_steps": 5,
        "checkpoint.every_steps": 4,
        "logger.every_steps": 1,
        "logger.tensorboard": False,
        "parallel.accelerator": "cpu",
        "parallel.cpu_threads": 1,
    }
    return [f"{key}={value}" for key, value in (values | {k.replace("__", "."): v for k, v in extra.items()}).items()]


def tiny_config(shards: Path, runs: Path, **extra: object) -> TrainConfig:
    """The same as a configuration."""
    return load_config(TrainConfig, "train", tiny_overrides(shards, runs, **extra))
