"""The LightningModule of every generator: one step of a packed row, loss as global sum over global count."""

import math

import torch
from torch import Tensor

from moss.config.model import LocalV15ModelConfig, ModelConfig, RealtimeModelConfig, StopHead
from moss.config.train import TrainConfig
from moss.data.batch import TokenBatch
from moss.data.order import keyed_generator
from moss.loss import LossSums, channel_loss_sums, expand_channel_weights, weighted_mean
from moss.model.flops import training_flops
from moss.model.interface import Generator
from moss.spec import IGNORE_LABEL
from moss.training.lit_base import LitRun


class LitGenerator(LitRun):
    """Trains a generator.

    Args:
        model: The network; its state dict is the checkpoint's, without a prefix.
        config: The run.
    """

    model: Generator

    def __init__(self, model: Generator, config: TrainConfig) -> None:
        super().__init__(model, config)
        weights = expand_channel_weights(config.loss.channel_weights, config.model.num_codebooks)
        self.register_buffer("channel_weights", weights, persistent=False)
        self._names = channel_names(config.model)
        # The published Local v1.5 leaves the weight of a channel without targets out of its mean; the others do not.
        self._only_present = isinstance(config.model, LocalV15ModelConfig)
        self._validation: LossSums | None = None
        self._share: Tensor | None = None
        self._sums_of_step: LossSums | None = None

    def transfer_batch_to_device(self, batch: TokenBatch, device: torch.device, dataloader_idx: int) -> TokenBatch:
        """Move the tensors."""
        return batch.to(device)

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """Loss of one row, scaled so that a step's rows on all ranks add up to the mean over the whole step."""
        if self.config.lora.dropout > 0:
            torch.manual_seed(self._key("dropout", batch))
        sums, scales = self._sums(batch, self._frames(batch))
        loss = self.mean(sums.sums, batch.step_counts)
        # A row's share of the step's mean: the step's loss is the sum of its rows' shares.
        rows = self.config.data.micro_batches_per_step
        # Metrics are means over what was computed, of which `counts` knows alone; a row without labels has scale 0.
        computed = sums.sums.detach() if scales is None else sums.sums.detach() / scales.clamp(min=1)
        self._log_step(batch, loss.detach(), LossSums(computed, sums.counts))
        self.cursor = batch.cursor
        # Lightning divides by the accumulation and DDP averages over ranks; both are undone here.
        return loss * rows

    def _log_step(self, batch: TokenBatch, share: Tensor, sums: LossSums) -> None:
        """Log this rank's loss of a whole step once its last row is in, per channel and together."""
        self._share = share if self._share is None else self._share + share
        self._sums_of_step = sums if self._sums_of_step is None else self._sums_of_step + sums
        if batch.cursor == batch.step:
            return
        self.log("train/loss", self._share)
        self._log_channels("train", self._sums_of_step)
        self._share = self._sums_of_step = None

    def _log_channels(self, part: str, sums: LossSums) -> None:
        """Mean of each channel; not a number where a channel had no target."""
        for name, value in zip(self._names, sums.sums / sums.counts, strict=True):
            if name is not None:
                self.log(f"{part}/loss/{name}", value)

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Sums only; the mean is taken over the whole set."""
        sums, _ = self._sums(batch)
        self._validation = sums if self._validation is None else self._validation + sums

    def on_validation_epoch_end(self) -> None:
        """Log the mean over all validation targets, per channel and together."""
        sums, self._validation = self._validation, None
        if sums is None:
            return
        self.log("val/loss", self.mean(sums.sums, sums.counts))
        self._log_channels("val", sums)

    def work(self, batch: TokenBatch) -> tuple[int, float]:
        """Positions of a row and the floating-point work that its labels require."""
        counts = (batch.labels >= 0).sum(dim=(0, 1)).tolist()
        flops = training_flops(
            self.config.model,
            batch.document_lengths,
            counts,
            depth_frac=self.config.loss.depth_frac,
            frozen=self.config.lora.rank > 0,
        )
        return batch.num_positions, flops

    def _sums(self, batch: TokenBatch, frames: Tensor | None = None) -> tuple[LossSums, Tensor | None]:
        """Sums of a row, and the scales that they hold where a share of the frames stands for all."""
        hidden = self.model(batch.tokens, document_lengths=batch.document_lengths).hidden
        seen = self.model.supervised(hidden, batch.labels, frames)
        sums = channel_loss_sums(seen.states, seen.labels, self.model.head_weight, scales=seen.scales)
        return sums, seen.scales

    def _frames(self, batch: TokenBatch) -> Tensor | None:
        """Which labelled positions' codes are computed, bool (labelled positions,); None computes all."""
        frac = self.config.loss.depth_frac
        if frac >= 1:
            return None
        labelled = int((batch.labels != IGNORE_LABEL).any(-1).sum())
        return draw_frames(labelled, frac, self._key("depth", batch)).to(batch.labels.device)

    def _key(self, purpose: str, batch: TokenBatch) -> int:
        """Seed of a draw for a row: the same whatever the number of processes, and after a resume."""
        return draw_key(purpose, self.config.seed, batch.row)

    def mean(self, sums: Tensor, counts: Tensor) -> Tensor:
        """One loss from the channels' sums, weighted as the run says.

        Args:
            sums: Summed cross-entropy, shape (channels,).
            counts: Targets that the mean is over, shape (channels,): those of a whole step, or of all validation.
        """
        weights = self.channel_weights
        assert weights is None or isinstance(weights, Tensor)
        return weighted_mean(sums, counts, weights, only_present=self._only_present)


def draw_key(purpose: str, seed: int, row: int) -> int:
    """A 63-bit seed that depends on nothing but the arguments."""
    return int(keyed_generator(purpose, seed, row).integers(2**63 - 1))


def draw_frames(count: int, frac: float, key: int) -> Tensor:
    """Choose exactly ceil(frac * count) of `count` positions.

    Args:
        count: How many there are.
        frac: Share to choose, in (0, 1].
        key: Seed of the draw.

    Returns:
        Bool, shape (count,).
    """
    generator = torch.Generator().manual_seed(key)
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[torch.randperm(count, generator=generator)[: math.ceil(frac * count)]] = True
    return chosen


def channel_names(config: ModelConfig) -> list[str | None]:
    """What metrics call each channel: `text`, `codebook_00`, ...; None for one that has no loss.

    Channel 0 of Local v1.5 with a binary head is `stop`; Realtime is given its text.
    """
    first: str | None = "text"
    if isinstance(config, RealtimeModelConfig):
        first = None
    elif isinstance(config, LocalV15ModelConfig) and config.stop_head is StopHead.binary:
        first = "stop"
    return [first, *(f"codebook_{k:02d}" for k in range(config.num_codebooks))]
