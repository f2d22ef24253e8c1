"""Checkpoints that are complete or absent: each is a folder, written under another name and renamed when whole.

`step-00000500/` holds `model.safetensors` and `moss.json` (what using the model needs), `trainer.pt` (optimizer,
schedule, loops, cursor), and `published/` where training began with a published model (what exporting it needs).
`trainer.pt` is read with `weights_only=True`: nothing in it can execute.
"""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors import SafetensorError
from safetensors.torch import load_file

from moss.config.train import CheckpointConfig
from moss.errors import CheckpointError, MossError
from moss.model.checkpoint import CARD_FILE, WEIGHTS_FILE, carry_published, save_weights

TRAINER_FILE = "trainer.pt"
_PREFIX, _UNFINISHED = "step-", ".unfinished-"


def step_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return checkpoints / f"{_PREFIX}{step:08d}"


def complete_checkpoints(checkpoints: Path) -> list[Path]:
    """All checkpoints of a run, oldest first; a folder under its final name is whole."""
    if not checkpoints.is_dir():
        return []
    return sorted(path for path in checkpoints.iterdir() if path.is_dir() and path.name.startswith(_PREFIX))


def remove_unfinished(checkpoints: Path) -> None:
    """Delete what a killed process left half written."""
    if checkpoints.is_dir():
        for path in checkpoints.iterdir():
            if path.name.startswith(_UNFINISHED):
                shutil.rmtree(path)


class FolderCheckpointIO(CheckpointIO):
    """Lightning's checkpoint dictionary as a folder.

    Args:
        card: Gives the text of `moss.json` for a step.
        kept: Folder that keeps the files of a published one, which every checkpoint gets a copy of.
    """

    def __init__(self, card: Callable[[int], str], kept: Path | None = None) -> None:
        self._card, self._kept = card, kept

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write beside the final name and flush to disk; `publish` gives the folder its name.

        Raises:
            CheckpointError: No space, or the folder cannot be written; the unfinished folder is removed.
        """
        final = Path(path)
        unfinished = _unfinished(final)
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            rest = dict(checkpoint)
            save_weights(rest.pop("state_dict"), unfinished)
            (unfinished / CARD_FILE).write_text(self._card(checkpoint["global_step"]), encoding="utf-8")
            torch.save(rest, unfinished / TRAINER_FILE)
            if self._kept is not None:
                carry_published(self._kept, unfinished)
            for file in unfinished.rglob("*"):
                _flush(file)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            reason = "no space left on the device" if _is_full(error) else str(error)
            raise CheckpointError(
                f"{final}: could not be written: {reason}; earlier checkpoints are kept, free space and start again"
            ) from error

    @staticmethod
    def publish(path: Path) -> None:
        """Rename a written checkpoint to its final name; from now on it exists."""
        # A checkpoint of this step may be left from before a kill; its content is the same.
        shutil.rmtree(path, ignore_errors=True)
        _unfinished(path).rename(path)
        _flush(path.parent)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a folder back into Lightning's dictionary.

        Raises:
            CheckpointError: A file is missing or damaged.
        """
        folder = Path(path)
        for name in (WEIGHTS_FILE, CARD_FILE, TRAINER_FILE):
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder}: {name} is missing; delete the folder to resume from the one before")
        try:
            content = torch.load(folder / TRAINER_FILE, map_location="cpu", weights_only=True)
            state = load_file(folder / WEIGHTS_FILE)
        # torch and safetensors raise many types for damaged files; every one means the same here.
        except Exception as error:
            raise CheckpointError(
                f"{folder}: damaged ({type(error).__name__}); delete the folder to resume from the one before"
            ) from error
        assert isinstance(content, dict)
        return {**content, "state_dict": state}

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint folder."""
        shutil.rmtree(path)


def _unfinished(final: Path) -> Path:
    return final.parent / f"{_UNFINISHED}{final.name}"


def _is_full(error: Exception) -> bool:
    """Whether a write failed for want of space; the libraries written in Rust and C++ say so in words only."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    words = str(error).lower()
    signs = ("no space", "quota", "file too large", "failed writing file", "unexpected pos")
    return any(sign in words for sign in signs)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class StepCheckpoints(Callback):
    """Saves every n optimizer steps and at the end; keeps the newest.

    A checkpoint is published once its step is logged and validated: a run that is killed in between resumes from the
    one before, and no row of metrics.csv is lost.
    """

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        """Checkpoints go below `folder`."""
        self._folder, self._config = folder, config
        self._last_saved = -1
        self._unpublished: Path | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run has the checkpoint of its first step; saved again, it would hold half an accumulated step."""
        self._last_saved = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """The step before is over."""
        self._publish(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save at a step boundary."""
        step = trainer.global_step
        if step % self._config.every_steps == 0 and step != self._last_saved and step > 0:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state."""
        if trainer.global_step != self._last_saved:
            self._save(trainer)
        self._publish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Data that cannot be read ends a run between two steps: what was saved is good."""
        if isinstance(exception, MossError) and not trainer.validating:
            self._publish(trainer)

    def _save(self, trainer: Trainer) -> None:
        self._last_saved = trainer.global_step
        path = step_folder(self._folder, self._last_saved)
        trainer.save_checkpoint(path)
        self._unpublished = path

    def _publish(self, trainer: Trainer) -> None:
        path, self._unpublished = self._unpublished, None
        if path is not None and trainer.is_global_zero:
            FolderCheckpointIO.publish(path)
            for old in complete_checkpoints(self._folder)[: -self._config.keep]:
                shutil.rmtree(old)
