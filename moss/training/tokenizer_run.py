"""TrainConfig with task=tokenizer -> a finished run folder with held-out scores."""

import json
import logging
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from moss.config.identity import run_folder
from moss.config.schema import to_plain
from moss.config.tokenizer import CatConfig
from moss.config.train import TrainConfig
from moss.data.files import atomic_write
from moss.data.manifest import Utterance
from moss.errors import CheckpointError, ConfigError
from moss.tokenizer.cat import CatModel, CatTokenizer
from moss.training.checkpoint import FolderCheckpointIO, complete_checkpoints
from moss.training.lit_tokenizer import LitTokenizer
from moss.training.run import fit, is_finished, prepare
from moss.training.tokenizer_data import Recordings, SegmentData
from moss.training.tokenizer_score import HeldoutScores

logger = logging.getLogger(__name__)


class WallTimeLimit(Callback):
    """Ends a run between two steps once it has gone on for so long.

    Args:
        limit_s: Seconds from the start of this process' training; None is no limit.
    """

    def __init__(self, limit_s: float | None) -> None:
        self._limit_s = math.inf if limit_s is None else limit_s
        self._started_at = time.monotonic()
        self.reached = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started_at = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Ask the loop to end; the last checkpoint is then written as usual."""
        if time.monotonic() - self._started_at >= self._limit_s:
            self.reached = True
            trainer.should_stop = True


def train_tokenizer(config: TrainConfig) -> Path:
    """Train a Cat until `schedule.max_steps` or the wall-time limit, then score it on all held-out clips.

    The newest checkpoint folder is what `tokenizer.weights` of later commands points at; `heldout.json` beside the
    checkpoints holds the scores, which are also written to stdout.

    Returns:
        The run folder.

    Raises:
        MossError: Data, checkpoint or configuration cannot be used; what was written before is kept.
    """
    if not isinstance(config.tokenizer, CatConfig):
        raise ConfigError(f"tokenizer.kind: task=tokenizer trains 'cat', got {config.tokenizer.kind!r}")
    folder = run_folder(config)
    spec = config.tokenizer.spec()
    data = SegmentData(config.tokenizer_training, spec, config.seed, config.schedule.max_validation_examples)
    if not is_finished(folder, config):
        prepare(folder, config)
        model = CatModel(config.tokenizer)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        logger.info("%s: %.2fM parameters, %d training clips", folder, parameters / 1e6, len(data.train_clips))
        limit = WallTimeLimit(config.tokenizer_training.max_wall_s)
        try:
            module = LitTokenizer(model, config, spec, data.sampler)
            fit(config, folder, module, data, FolderCheckpointIO(lambda step: _card(config, step)), [limit])
        except CheckpointError:
            if not limit.reached:
                raise
            logger.info("%s: the wall-time limit ended training; the same command goes on from here", folder)
    _score(config.tokenizer, folder, data.heldout_clips, data.recordings)
    return folder


def _card(config: TrainConfig, step: int) -> str:
    return json.dumps({"kind": "tokenizer", "step": step, "tokenizer_config": to_plain(config.tokenizer)}, indent=2)


def _score(config: CatConfig, folder: Path, clips: list[Utterance], recordings: Recordings) -> None:
    """Score the newest checkpoint on all held-out clips; write `heldout.json` and say it on stdout."""
    checkpoint = complete_checkpoints(folder / "checkpoints")[-1]
    tokenizer = CatTokenizer.load(config, checkpoint)
    scores = HeldoutScores(tokenizer.spec)
    for clip in clips:
        scores.add(tokenizer, recordings.wave(clip))
    health = scores.health
    stoi = float(np.mean(scores.stoi)) if scores.stoi else None
    record = {"checkpoint": checkpoint.name, "fingerprint": tokenizer.fingerprint, "stoi": stoi}
    record |= {"clips": len(clips), "clips_too_short_for_stoi": scores.unscored, **asdict(health)}
    with atomic_write(folder / "heldout.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    lines = [f"weights   {checkpoint}", f"held out  {len(clips)} clips, {health.frames} frames"]
    lines += [f"STOI      {'none' if stoi is None else format(stoi, '.3f')} ({len(scores.stoi)} clips)"]
    lines += [
        f"codebook {i:2d}  {used:6.1%} used, perplexity {perplexity:.0f}"
        for i, (used, perplexity) in enumerate(zip(health.used_frac, health.perplexity, strict=True))
    ]
    sys.stdout.write("\n".join(lines) + "\n")
