"""The LightningModule of every generator: one step of a packed row, loss as global sum over global count."""

import torch
from torch import Tensor

from moss.config.train import TrainConfig
from moss.data.batch import TokenBatch
from moss.loss import LossSums, channel_loss_sums, expand_channel_weights, weighted_mean
from moss.model.delay import DelayModel
from moss.model.flops import delay_training_flops
from moss.training.lit_base import LitRun


class LitGenerator(LitRun):
    """Trains a generator.

    Args:
        model: The network; its state dict is the checkpoint's, without a prefix.
        config: The run.
    """

    def __init__(self, model: DelayModel, config: TrainConfig) -> None:
        super().__init__(model, config)
        weights = expand_channel_weights(config.loss.channel_weights, config.model.num_codebooks)
        self.register_buffer("channel_weights", weights, persistent=False)
        self._validation: LossSums | None = None
        self._share: Tensor | None = None
        self._sums_of_step: LossSums | None = None

    def transfer_batch_to_device(self, batch: TokenBatch, device: torch.device, dataloader_idx: int) -> TokenBatch:
        """Move the tensors."""
        return batch.to(device)

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """Loss of one row, scaled so that a step's rows on all ranks add up to the mean over the whole step."""
        sums = self._sums(batch)
        loss = weighted_mean(sums.sums, batch.step_counts, self._weights())
        # A row's share of the step's mean: the step's loss is the sum of its rows' shares.
        rows = self.config.data.micro_batches_per_step
        self._log_step(batch, loss.detach(), LossSums(sums.sums.detach(), sums.counts))
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
        done = self._sums_of_step
        for channel, value in enumerate(done.sums / done.counts.clamp(min=1)):
            self.log(f"train/loss/{channel_name(channel)}", value)
        self._share = self._sums_of_step = None

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Sums only; the mean is taken over the whole set."""
        sums = self._sums(batch)
        self._validation = sums if self._validation is None else self._validation + sums

    def on_validation_epoch_end(self) -> None:
        """Log the mean over all validation targets, per channel and together."""
        sums, self._validation = self._validation, None
        if sums is None:
            return
        self.log("val/loss", weighted_mean(sums.sums, sums.counts, self._weights()))
        for channel, value in enumerate(sums.sums / sums.counts.clamp(min=1)):
            self.log(f"val/loss/{channel_name(channel)}", value)

    def work(self, batch: TokenBatch) -> tuple[int, float]:
        """Positions of a row and the floating-point work that its labels require."""
        counts = (batch.labels >= 0).sum(dim=(0, 1)).tolist()
        return batch.num_positions, delay_training_flops(self.config.model, batch.document_lengths, counts)

    def _sums(self, batch: TokenBatch) -> LossSums:
        hidden = self.model(batch.tokens, document_lengths=batch.document_lengths).hidden
        return channel_loss_sums(hidden, batch.labels, self.model.head_weight)

    def _weights(self) -> Tensor | None:
        weights = self.channel_weights
        assert weights is None or isinstance(weights, Tensor)
        return weights


def channel_name(channel: int) -> str:
    """`text`, `codebook_00`, `codebook_01`, ..."""
    return "text" if channel == 0 else f"codebook_{channel - 1:02d}"
