"""What watches a tokenizer in training: the clock, a plot of codebook use, and reconstructions to listen to."""

import csv
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from moss.data.audio import write_wav
from moss.data.files import atomic_write
from moss.data.manifest import Utterance
from moss.training.processes import any_of_all
from moss.training.tokenizer_recordings import Recordings

if TYPE_CHECKING:
    from moss.training.lit_tokenizer import LitTokenizer

PLOT_FILE = "codebooks.png"
LONGEST_SAMPLE_S = 15.0
"""Longer clips are cut: one may wait for this many times the real-time factor."""


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

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Ask the loop to end; the last checkpoint is then written as usual."""
        if math.isinf(self._limit_s):
            return
        # Clocks differ: a process that went on alone would wait for the others for ever.
        if any_of_all(time.monotonic() - self._started_at >= self._limit_s, pl_module.device):
            self.reached = True
            trainer.should_stop = True


class CodebookPlot(Callback):
    """`codebooks.png` in the run folder, drawn anew after each validation.

    Args:
        folder: The run's; its metrics.csv has what was logged before a resume.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw used fraction and perplexity of every codebook over steps."""
        if trainer.is_global_zero:
            draw_codebooks(self._folder / "metrics.csv", self._folder / PLOT_FILE)


def draw_codebooks(metrics: Path, plot: Path) -> None:
    """Plot what a metrics.csv says of held-out codebook use; draws nothing where it says nothing.

    Args:
        metrics: The file.
        plot: PNG to write, atomically.
    """
    from matplotlib.figure import Figure

    curves: dict[str, dict[str, list[tuple[int, float]]]] = {"used_frac": {}, "perplexity": {}}
    with metrics.open(newline="", encoding="utf-8") as file:
        for row in csv.reader(file):
            part, _, codebook = row[1].rpartition("/")
            name = part.removeprefix("val/")
            if name in curves and part.startswith("val/") and codebook.startswith("codebook_"):
                curves[name].setdefault(codebook, []).append((int(row[0]), float(row[2])))
    if not curves["used_frac"]:
        return
    figure = Figure(figsize=(8, 7), layout="constrained")
    titles = {"used_frac": "share of codes used", "perplexity": "perplexity"}
    for axes, (name, title) in zip(figure.subplots(2, 1, sharex=True), titles.items(), strict=True):
        for i, (codebook, points) in enumerate(sorted(curves[name].items())):
            steps, values = zip(*points, strict=True)
            shade = i / max(1, len(curves[name]) - 1)
            axes.plot(steps, values, marker=".", color=(shade * 0.9, 0.35, 1 - shade * 0.8), label=codebook)
        axes.set_ylabel(title)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    axes.set_xlabel("step")
    figure.axes[0].set_title("codebooks on held-out clips, blue first, red last")
    if len(curves["used_frac"]) <= 8:
        figure.axes[1].legend(fontsize=7, ncols=2)
    with atomic_write(plot) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


class AudioSamples(Callback):
    """Held-out clips and their reconstructions as wav files, and in TensorBoard.

    Args:
        folder: The run's; files go to `audio/step-00000123/<id>.generated.wav` and `.target.wav`.
        clips: What to reconstruct; those that cannot be read are left out.
        recordings: Reads them.
        every_s: Seconds between two sets; 0 is never.
    """

    def __init__(self, folder: Path, clips: list[Utterance], recordings: Recordings, every_s: float) -> None:
        self._folder, self._clips, self._recordings = folder, clips, recordings
        self._every_s = every_s or math.inf
        self._last_at = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._last_at = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Write a set when it is time."""
        if trainer.is_global_zero and time.monotonic() - self._last_at >= self._every_s:
            self.write(trainer, pl_module)  # type: ignore[arg-type]
            self._last_at = time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The end of a run can be heard too."""
        if trainer.is_global_zero and math.isfinite(self._every_s):
            self.write(trainer, pl_module)  # type: ignore[arg-type]

    def write(self, trainer: Trainer, module: "LitTokenizer") -> None:
        """Write one set."""
        step, rate_hz = trainer.global_step, module.spec.sampling_rate_hz
        folder = self._folder / "audio" / f"step-{step:08d}"
        with module.exported():
            for clip in self._clips:
                wave = self._recordings.find(clip)
                if wave is None:
                    continue
                target = wave[..., : int(LONGEST_SAMPLE_S * rate_hz)]
                # The last step that was taken says whether there are codes yet.
                generated = module.reconstruct(target, step - 1)
                for kind, sound in (("target", target), ("generated", generated)):
                    folder.mkdir(parents=True, exist_ok=True)
                    write_wav(folder / f"{clip.id}.{kind}.wav", sound, rate_hz)
                _to_tensorboard(trainer, clip.id, generated, step, rate_hz)


def _to_tensorboard(trainer: Trainer, name: str, wave: Tensor, step: int, rate_hz: int) -> None:
    mono = wave if wave.dim() == 1 else wave.mean(0)
    for target in trainer.loggers:
        if isinstance(target, TensorBoardLogger):
            target.experiment.add_audio(f"heldout/{name}", torch.clamp(mono, -1, 1)[None], step, rate_hz)
