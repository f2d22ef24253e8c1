"""TrainConfig with task=tokenizer -> a finished run folder with held-out scores."""

import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback

from moss.config.identity import run_folder
from moss.config.schema import to_plain
from moss.config.tokenizer import CatConfig, Part
from moss.config.train import Accelerator, TrainConfig
from moss.data.files import atomic_write
from moss.data.manifest import Utterance
from moss.errors import CheckpointError, ConfigError
from moss.tokenizer.cat import CatModel, CatTokenizer
from moss.tokenizer.hf_map import load_state, read_weights
from moss.tokenizer.semantic import SemanticTask
from moss.training.checkpoint import FolderCheckpointIO, complete_checkpoints, step_folder
from moss.training.lit_tokenizer import LitTokenizer
from moss.training.processes import processes
from moss.training.run import fit, is_finished, prepare
from moss.training.tokenizer_companions import Listener
from moss.training.tokenizer_data import SegmentData, none_readable
from moss.training.tokenizer_recordings import Recordings
from moss.training.tokenizer_score import HeldoutScores
from moss.training.tokenizer_watch import AudioSamples, CodebookPlot, WallTimeLimit

logger = logging.getLogger(__name__)


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
    if config.tokenizer.part is not Part.full:
        raise ConfigError(f"tokenizer.part={config.tokenizer.part}: training needs the whole tokenizer; leave it out")
    if config.tokenizer.weights is not None:
        raise ConfigError(
            f"tokenizer.weights={config.tokenizer.weights}: training starts from nothing, or from "
            "tokenizer_training.init_from; set that instead"
        )
    if 0 < config.tokenizer_training.init_frames < config.tokenizer.quantizer.codebook_size:
        raise ConfigError(
            f"tokenizer_training.init_frames={config.tokenizer_training.init_frames}: a codebook of "
            f"{config.tokenizer.quantizer.codebook_size} needs at least as many frames; raise it, or set it to 0"
        )
    if config.tokenizer_training.mid_side_weight and config.tokenizer.num_audio_channels == 1:
        raise ConfigError(
            f"tokenizer_training.mid_side_weight={config.tokenizer_training.mid_side_weight}: a mono tokenizer has no "
            "middle and sides; leave it at 0"
        )
    folder, mine = run_folder(config), processes()
    if mine.is_first:
        _warn_of_what_never_begins(config)
    spec = config.tokenizer.spec()
    data = SegmentData(config.tokenizer_training, spec, config.seed, config.schedule.max_validation_examples, mine)
    if not is_finished(folder, config):
        prepare(folder, config)
        _train(config, config.tokenizer, folder, data)
    if mine.is_first:
        _score(config, config.tokenizer, folder, data.heldout_clips, data.recordings)
    return folder


def _warn_of_what_never_begins(config: TrainConfig) -> None:
    settings, end = config.tokenizer_training, config.schedule.max_steps
    if settings.bypass_steps >= end:
        logger.warning(
            "tokenizer_training.bypass_steps=%d: training ends at step %d, before any codebook learns; lower it or "
            "raise schedule.max_steps",
            settings.bypass_steps,
            end,
        )
    first, wait = settings.discriminator.from_step, settings.discriminator.warmup_steps
    if first is not None and first + wait >= end:
        logger.warning(
            "tokenizer_training.discriminator.from_step=%d with warmup_steps=%d: training ends at step %d, before the "
            "discriminators judge; lower them, or set from_step to null",
            first,
            wait,
            end,
        )


def _train(config: TrainConfig, tokenizer: CatConfig, folder: Path, data: SegmentData) -> None:
    """Train in a prepared folder."""
    settings, spec = config.tokenizer_training, tokenizer.spec()
    model = CatModel(tokenizer)
    # Later starts go on from a checkpoint, and need the weights they began with no more.
    if settings.init_from is not None and not complete_checkpoints(folder / "checkpoints"):
        load_state(model, read_weights(settings.init_from), f"tokenizer_training.init_from={settings.init_from}")
        logger.info("starting from the weights of %s", settings.init_from)
    listener = None
    if data.text_tokenizer is not None:
        width = tokenizer.quantizer.output_size
        listener = Listener(config, width, data.text_tokenizer.vocab_size, len(SemanticTask))
    module = LitTokenizer(model, config, spec, data.sampler, listener)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info("%s: %.2fM parameters, %d training clips", folder, parameters / 1e6, len(data.train_clips))
    limit = WallTimeLimit(settings.max_wall_s)
    heard = data.validation_clips[: settings.audio_clips]
    samples = AudioSamples(folder, heard, data.recordings, settings.audio_every_s)
    watch: list[Callback] = [limit, CodebookPlot(folder), samples]
    try:
        fit(config, folder, module, data, FolderCheckpointIO(lambda step: _card(config, step)), watch)
    except CheckpointError:
        saved = [path.name for path in complete_checkpoints(folder / "checkpoints")]
        # A last checkpoint that could not be written is an error, whatever ended training.
        # The first process writes; the others may look before its last one has its name.
        is_missing = processes().is_first and saved[-1:] != [step_folder(folder / "checkpoints", module.cursor).name]
        if not limit.reached or is_missing:
            raise
        logger.info("%s: the wall-time limit ended training; the same command goes on from here", folder)
    broken = data.sampler.broken
    if broken.num_broken:
        logger.warning(
            "%d segments were silence: %d training recordings cannot be read", broken.silent_segments, broken.num_broken
        )


def _card(config: TrainConfig, step: int) -> str:
    return json.dumps({"kind": "tokenizer", "step": step, "tokenizer_config": to_plain(config.tokenizer)}, indent=2)


def _score(run: TrainConfig, config: CatConfig, folder: Path, clips: list[Utterance], recordings: Recordings) -> None:
    """Score the newest checkpoint on all held-out clips; write `heldout.json` and say it on stdout."""
    checkpoint = complete_checkpoints(folder / "checkpoints")[-1]
    on_gpu = run.parallel.accelerator is not Accelerator.cpu and torch.cuda.is_available()
    tokenizer = CatTokenizer.load(config, checkpoint, "cuda" if on_gpu else "cpu")
    scores = HeldoutScores(tokenizer.spec)
    scored = 0
    for clip in clips:
        wave = recordings.find(clip)
        if wave is not None:
            scores.add(tokenizer, wave)
            scored += 1
    if not scored:
        raise none_readable(clips, recordings)
    health = scores.health
    stoi = float(np.mean(scores.stoi)) if scores.stoi else None
    record = {"checkpoint": checkpoint.name, "fingerprint": tokenizer.fingerprint, "stoi": stoi}
    record |= {"clips": scored, "clips_that_cannot_be_read": len(clips) - scored}
    record |= {"clips_too_short_for_stoi": scores.unscored, **asdict(health)}
    with atomic_write(folder / "heldout.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    lines = [f"weights   {checkpoint}", f"held out  {scored} clips, {health.frames} frames"]
    lines += [f"STOI      {'none' if stoi is None else format(stoi, '.3f')} ({len(scores.stoi)} clips)"]
    lines += [
        f"codebook {i:2d}  {used:6.1%} used, perplexity {perplexity:.0f}"
        for i, (used, perplexity) in enumerate(zip(health.used_frac, health.perplexity, strict=True))
    ]
    sys.stdout.write("\n".join(lines) + "\n")
