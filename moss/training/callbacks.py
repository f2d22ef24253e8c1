"""What watches a run: the progress bar, throughput, and the stop on non-finite numbers."""

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from moss.errors import DataError
from moss.training.throughput import Throughput

logger = logging.getLogger(__name__)


def progress_text(metrics: Mapping[str, float]) -> str:
    """What a person watching wants to see; MFU is n/a where the device's peak is unknown."""
    keys = ("train/mel", "train/loss", "val/loss")
    shown = [f"{key} {metrics[key]:.4g}" for key in keys if key in metrics]
    if "train/used_frac" in metrics:
        shown.append(f"codes used {metrics['train/used_frac']:.1%}")
    if "perf/positions_per_s" in metrics:
        mfu = f"{metrics['perf/mfu']:.1%}" if "perf/mfu" in metrics else "n/a"
        speed, wait = metrics["perf/positions_per_s"], metrics["perf/data_wait_frac"]
        shown.append(f"{speed:.0f} positions/s  data wait {wait:.1%}  MFU {mfu}")
    return "  ".join(shown)


class StepProgress(Callback):
    """A bar over optimizer steps on a terminal, one log line now and then elsewhere."""

    def __init__(self, every_steps: int) -> None:
        """Text is refreshed every so many steps."""
        self._every_steps = every_steps
        self._bar: Progress | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the resumed step."""
        if trainer.is_global_zero and sys.stderr.isatty():
            columns = (
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
            )
            self._bar = Progress(*columns)
            self._bar.start()
            self._task = self._bar.add_task("steps", total=trainer.max_steps, completed=trainer.global_step, text="")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Advance."""
        step = trainer.global_step
        if not trainer.is_global_zero or step % self._every_steps:
            return
        text = progress_text({key: float(value) for key, value in trainer.callback_metrics.items()})
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif step % (10 * self._every_steps) == 0:
            logger.info("step %d/%d  %s", step, trainer.max_steps, text)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the message is readable."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class ThroughputMonitor(Callback):
    """Logs positions per second, data wait and MFU every n steps; leaves out the first step, which warms up."""

    def __init__(self, every_steps: int) -> None:
        """Report every so many optimizer steps."""
        self._every_steps = every_steps
        self._throughput = Throughput()
        self._ended_at: float | None = None
        self._started = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The gap since the last batch is time spent on data."""
        if self._ended_at is not None:
            self._throughput.waited(time.perf_counter() - self._ended_at)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch."""
        self._ended_at = time.perf_counter()
        if not self._started:
            self._started = True
            self._throughput.reset()
            return
        self._throughput.trained(*pl_module.work(batch))  # type: ignore[operator]
        if trainer.global_step % self._every_steps == 0:
            metrics = self._throughput.report()
            for target in trainer.loggers:
                target.log_metrics(metrics, step=trainer.global_step - 1)
            trainer.callback_metrics.update({key: torch.tensor(value) for key, value in metrics.items()})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation time is not training time."""
        self._throughput.reset()
        self._ended_at = None


class StopOnNonFinite(Callback):
    """Ends the run before the optimizer uses a gradient that is not finite, and names the utterances."""

    def __init__(self) -> None:
        """Knows no batch yet."""
        self._utterances: list[str] = []
        self._step = -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember whom to name: everything in the rows of this step."""
        if trainer.global_step != self._step:
            self._step, self._utterances = trainer.global_step, []
        self._utterances += getattr(batch, "utterance_ids", [])

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Check once per step; the norm is needed for clipping anyway.

        Raises:
            DataError: A gradient is NaN or infinite.
        """
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not bool(torch.isfinite(norm)):
            raise DataError(
                f"step {trainer.global_step}: the gradient is not finite; utterances: "
                f"{', '.join(self._utterances[:8])}. Look at them, or lower optim.lr; the last checkpoint is untouched"
            )
        pl_module.log("optim/grad_norm", norm)
