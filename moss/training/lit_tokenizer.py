"""The LightningModule of the audio tokenizer: reconstruction and quantizer losses, and what keeps codebooks alive."""

import logging
from typing import Any

import torch
from torch import Tensor

from moss.config.train import TrainConfig
from moss.spec import TokenizerSpec
from moss.tokenizer.cat import CatModel, CatTokenizer
from moss.tokenizer.codebook_health import count_codes
from moss.tokenizer.losses import MultiScaleMelLoss
from moss.tokenizer.recipe import draw_active_codebooks, initialise_from_data, replace_dead_codes, seeded
from moss.training.lit_base import LitRun
from moss.training.tokenizer_data import SegmentBatch, SegmentSampler
from moss.training.tokenizer_score import HeldoutScores

logger = logging.getLogger(__name__)

_ACTIVE, _INIT, _REPLACE, _FIT_SEGMENTS = 2, 3, 4, 5
"""Stream numbers of random draws; 1 is the segments'."""
REPLACEMENT_BATCHES = 8
"""Batches that are encoded to find latents for dead codes."""


class LitTokenizer(LitRun):
    """Trains a Cat.

    Args:
        model: The network; its state dict is the checkpoint's, without a prefix.
        config: The run.
        spec: Rates and code sizes.
        sampler: Draws further segments when codebooks are fitted to data.
    """

    def __init__(self, model: CatModel, config: TrainConfig, spec: TokenizerSpec, sampler: SegmentSampler) -> None:
        super().__init__(model, config)
        self.spec = spec
        self.mel_loss = MultiScaleMelLoss(spec.sampling_rate_hz, floor=config.tokenizer_training.mel_floor)
        self._sampler = sampler
        self._scores = HeldoutScores(spec)
        self._moved = 0
        self._counts: Tensor | None = None
        """Uses of each code since the last replacement; part of the checkpoint."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The step to go on with, and the code counts that the next replacement needs."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["moss_code_counts"] = self._usage().cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `on_save_checkpoint`."""
        super().on_load_checkpoint(checkpoint)
        self._counts = checkpoint["moss_code_counts"]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move the waveforms."""
        if isinstance(batch, SegmentBatch):
            return SegmentBatch(batch.wave_BN.to(device), batch.utterance_ids, batch.step)
        return batch.to(device)

    def on_train_batch_start(self, batch: SegmentBatch, batch_idx: int) -> None:
        """Fit codebooks when the bypass ends; move dead codes at their interval."""
        settings = self.config.tokenizer_training
        coded_steps = batch.step - settings.bypass_steps
        self._moved = 0
        if coded_steps == 0 and settings.init_frames:
            self._fit_codebooks(batch.step, settings.init_frames)
        elif coded_steps > 0 and settings.replace_every_steps and coded_steps % settings.replace_every_steps == 0:
            self._replace_codes(batch.step, settings.replace_below_uses)

    def training_step(self, batch: SegmentBatch, batch_idx: int) -> Tensor:
        """Weighted sum of the mel distance and, once codes are in use, the two quantizer losses."""
        settings = self.config.tokenizer_training
        if batch.step < settings.bypass_steps:
            hidden = self.model.quantizer.bypass(self.model.encode_hidden(batch.wave_BN))
            mel = self.mel_loss(self.model.decode_hidden(hidden), batch.wave_BN)
            loss = settings.mel_weight * mel
        else:
            generated, output = self.model(batch.wave_BN, self._active(batch))
            self._usage().add_(count_codes(output.codes_BTK, self.spec.codebook_size))
            mel = self.mel_loss(generated, batch.wave_BN)
            loss = settings.mel_weight * mel
            loss = loss + settings.commitment_weight * output.commitment_loss
            loss = loss + settings.codebook_weight * output.codebook_loss
            self.log("train/commitment", output.commitment_loss.detach())
            self.log("train/codes_moved", float(self._moved))
        self.log("train/mel", mel.detach())
        self.log("train/loss", loss.detach())
        self.cursor = batch.step + 1
        return loss

    def on_validation_epoch_start(self) -> None:
        """Score the weights as they are now."""
        self._scores = HeldoutScores(self.spec)
        self._tokenizer = CatTokenizer(self.model)

    def validation_step(self, wave: Tensor, batch_idx: int) -> None:
        """Reconstruct one held-out clip."""
        self._scores.add(self._tokenizer, wave)

    def on_validation_epoch_end(self) -> None:
        """Log STOI and the use of each codebook."""
        for name, value in self._scores.metrics().items():
            self.log(f"val/{name}", value)
        self.model.train()

    def _active(self, batch: SegmentBatch) -> Tensor | None:
        dropout = self.config.tokenizer_training.codebook_dropout_prob
        if dropout == 0:
            return None
        generator = seeded(self.config.seed, _ACTIVE, batch.step)
        drawn = draw_active_codebooks(len(batch.wave_BN), self.spec.num_codebooks, dropout, generator)
        return drawn.to(batch.wave_BN.device)

    def _usage(self) -> Tensor:
        if self._counts is None:
            self._counts = torch.zeros(self.spec.num_codebooks, self.spec.codebook_size, dtype=torch.int64)
        self._counts = self._counts.to(self.device)
        return self._counts

    @torch.no_grad()
    def _fit_codebooks(self, step: int, frames: int) -> None:
        hidden: list[Tensor] = []
        while sum(len(piece) for piece in hidden) < frames:
            batch = self._sampler.batch(len(hidden), stream=_FIT_SEGMENTS)
            hidden.append(self.model.encode_hidden(batch.wave_BN.to(self.device)).flatten(0, 1))
        fitted = torch.cat(hidden)[:frames].cpu()
        explained = initialise_from_data(self.model.quantizer.cpu(), fitted, self.config.seed)
        self.model.quantizer.to(self.device)
        logger.info(
            "step %d: codebooks fitted to %d frames; variance explained after each: %s",
            step,
            frames,
            " ".join(f"{share:.3f}" for share in explained),
        )
        # Moments of the weights before belong to other numbers.
        for parameter in self.model.quantizer.parameters():
            self._optimizer_state().pop(parameter, None)

    @torch.no_grad()
    def _replace_codes(self, step: int, min_uses: int) -> None:
        latents = []
        for i in range(REPLACEMENT_BATCHES):
            batch = self._sampler.batch(step * REPLACEMENT_BATCHES + i, stream=_REPLACE)
            output = self.model.quantizer(self.model.encode_hidden(batch.wave_BN.to(self.device)))
            latents.append(output.latents_BTKc.flatten(0, 1))
        generator = seeded(self.config.seed, _INIT, step)
        moved = replace_dead_codes(self.model.quantizer, self._usage(), torch.cat(latents), min_uses, generator)
        for layer, rows in zip(self.model.quantizer.layers, moved, strict=True):
            state = self._optimizer_state().get(layer.codebook.weight, {})
            for name in ("exp_avg", "exp_avg_sq"):
                if name in state:
                    state[name][rows] = 0
        self._moved = int(moved.sum())
        self._usage().zero_()

    def _optimizer_state(self) -> Any:
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        return optimizer.state
