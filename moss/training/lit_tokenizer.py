"""The LightningModule of the audio tokenizer: reconstruct, be judged, be read, and keep the codebooks alive.

What a checkpoint holds: `model.safetensors` is the tokenizer alone, with averaged weights where `ema_decay` is set, so
that `tokenizer.weights=<checkpoint folder>` loads what was scored. `trainer.pt` holds what only training needs: the
weights themselves where those are averaged, discriminators, audio-to-text model, all optimizers, and code counts.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from moss.config.tokenizer_training import SemanticScaling
from moss.config.train import TrainConfig
from moss.spec import TokenizerSpec
from moss.tokenizer.cat import CatModel, CatTokenizer
from moss.tokenizer.losses import QUIETEST, MultiScaleMelLoss, mid_side, waveform_loss
from moss.tokenizer.quantizer import QuantizerOutput
from moss.tokenizer.recipe import draw_active_codebooks, seeded
from moss.tokenizer.semantic import norm_factor
from moss.training.ema import EmaWeights, warm_decay
from moss.training.lit_base import LitRun
from moss.training.processes import add_gradients, total
from moss.training.tokenizer_codes import CodebookCare
from moss.training.tokenizer_companions import Adversary, Listener
from moss.training.tokenizer_data import SegmentBatch, SegmentSampler
from moss.training.tokenizer_score import HeldoutScores
from moss.training.tokenizer_waves import each_channel, interleaved, separated

_ACTIVE = 2
"""Stream number of the draws of codebook dropout."""


class LitTokenizer(LitRun):
    """Trains a Cat.

    Args:
        model: The network; its state dict is the checkpoint's, without a prefix.
        config: The run.
        spec: Rates and code sizes.
        sampler: Draws further segments when codebooks are fitted to data.
        listener: The audio-to-text model, where the semantic loss is on.
    """

    model: CatModel

    def __init__(
        self,
        model: CatModel,
        config: TrainConfig,
        spec: TokenizerSpec,
        sampler: SegmentSampler,
        listener: Listener | None = None,
    ) -> None:
        super().__init__(model, config)
        self.spec = spec
        self.settings = config.tokenizer_training
        self.mel_loss = MultiScaleMelLoss(spec.sampling_rate_hz, floor=self.settings.mel_floor)
        self.codes = CodebookCare(model, config, spec, sampler)
        self.listener = listener
        adversarial = self.settings.discriminator.from_step is not None
        self.adversary = Adversary(config, spec.sampling_rate_hz) if adversarial else None
        self._ema: EmaWeights | None = None
        self._ema_loaded: dict[str, Tensor] | None = None
        self._scores = HeldoutScores(spec)
        self._scoring = contextlib.ExitStack()
        self._moved = 0

    @property
    def _companions(self) -> dict[str, Adversary | Listener]:
        both = {"moss_adversary": self.adversary, "moss_listener": self.listener}
        return {name: companion for name, companion in both.items() if companion is not None}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The tokenizer as it is to be used: averaged where averages are kept."""
        return super().state_dict(*args, **kwargs) if self._ema is None else self._ema.state_dict()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The step to go on with, and everything beside the tokenizer."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["moss_codes"] = self.codes.state()
        for name, companion in self._companions.items():
            checkpoint[name] = companion.state()
        if self._ema is not None:
            checkpoint["moss_weights"] = self.model.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `on_save_checkpoint`."""
        super().on_load_checkpoint(checkpoint)
        self.codes.restore(checkpoint["moss_codes"])
        for name, companion in self._companions.items():
            companion.restore(checkpoint[name])
        if self.settings.ema_decay:
            self._ema_loaded, checkpoint["state_dict"] = checkpoint["state_dict"], checkpoint["moss_weights"]

    def on_train_start(self) -> None:
        """Averages begin once the weights are on their device."""
        if self.settings.ema_decay:
            self._ema = EmaWeights(self.model)
            if self._ema_loaded is not None:
                self._ema.load_state_dict(self._ema_loaded)
                self._ema_loaded = None

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move segments or a held-out waveform."""
        return batch.to(device)

    def on_train_batch_start(self, batch: SegmentBatch, batch_idx: int) -> None:
        """Fit codebooks when the bypass ends; move dead codes at their interval."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        self._moved = self.codes.before_step(batch.step, optimizer.state, self._ema)

    def training_step(self, batch: SegmentBatch, batch_idx: int) -> Tensor:
        """Weighted sum of the losses of the stage; the discriminators learn in between.

        Every loss is this process' share of that of the step, so that shares and gradients add up over processes.
        """
        quantized, output = self._quantize(batch)
        generated = self._decode(quantized, batch.waves.shape[-1])
        losses = self._reconstruction(generated, batch)
        weights = {name: self._weight(name, batch.step) for name in losses}
        reconstruction = _weighted(losses, weights)
        if output is not None:
            losses["commitment"] = output.commitment_loss * batch.share
            losses["codebook"] = output.codebook_loss * batch.share
            self.codes.count(output.codes_BTK, batch.step)
        shown: dict[str, Tensor] = {}
        if self.adversary is not None and self.settings.is_adversarial(batch.step):
            waves = each_channel(generated), each_channel(batch.waves)
            shown["discriminator"] = self.adversary.discriminate(*waves, batch.step, batch.share)
            self.log("optim/discriminator_grad_norm", self.adversary.last_norm)
            losses |= self.adversary.judge(*waves, batch.step, batch.share)
        weights |= {name: self._weight(name, batch.step) for name in losses}
        if self.listener is not None:
            losses["semantic"], weights["semantic"] = self._semantic(batch, quantized, reconstruction)
        loss = _weighted(losses, weights)
        self._log_losses({**losses, **shown, "loss": loss})
        self.cursor = batch.step + 1
        return loss

    def on_after_backward(self) -> None:
        """Add up gradients over processes; the audio-to-text model takes its own away."""
        add_gradients(self.model.parameters())
        if self.listener is not None:
            self.listener.learn(self.cursor - 1)
            self.log("optim/semantic_grad_norm", self.listener.last_norm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the averages."""
        super().optimizer_step(*args, **kwargs)
        if self._ema is not None:
            self._ema.update(self.model, warm_decay(self.settings.ema_decay, self.cursor - 1))

    @contextlib.contextmanager
    def exported(self) -> Iterator[CatModel]:
        """Inside the block the network has the weights that a checkpoint exports, and is in evaluation mode."""
        averaged = contextlib.nullcontext() if self._ema is None else self._ema.swapped_in(self.model)
        with averaged, torch.no_grad():
            self.model.eval()
            try:
                yield self.model
            finally:
                self.model.train()

    def reconstruct(self, wave: Tensor, step: int) -> Tensor:
        """A waveform (N,) or (2, N) through the network as it is trained in a step; inside `exported`."""
        hidden = self.model.encode_hidden(interleaved(wave[None].to(self.device)))
        if step < self.settings.bypass_steps:
            quantized = self.model.quantizer.bypass(hidden)
        else:
            quantized = self.model.quantizer(hidden).quantized_BTD
        return self._decode(quantized, wave.shape[-1])[0].cpu()

    def on_validation_epoch_start(self) -> None:
        """Score the weights that would be exported now."""
        self._scores = HeldoutScores(self.spec)
        self._tokenizer = CatTokenizer(self._scoring.enter_context(self.exported()))

    def validation_step(self, wave: Tensor, batch_idx: int) -> None:
        """Reconstruct one held-out clip; an empty one says that this process has none."""
        if wave.numel():
            self._scores.add(self._tokenizer, wave)

    def on_validation_epoch_end(self) -> None:
        """Log STOI and the use of each codebook."""
        self._scoring.close()
        self._scores.gather(self.device)
        for name, value in self._scores.metrics().items():
            self.log(f"val/{name}", value)

    def _weight(self, loss: str, step: int) -> float:
        if loss == "waveform":
            return self.settings.waveform_weight_at(step, self.config.schedule.max_steps)
        weight: float = getattr(self.settings, f"{loss}_weight")
        return weight

    def _quantize(self, batch: SegmentBatch) -> tuple[Tensor, QuantizerOutput | None]:
        """Decoder input; without codes in the bypass stage. The quantizer computes in fp32 whatever the rest does."""
        hidden = self.model.encode_hidden(interleaved(batch.waves))
        with torch.autocast(self.device.type, enabled=False):
            if batch.step < self.settings.bypass_steps:
                return self.model.quantizer.bypass(hidden.float()), None
            output = self.model.quantizer(hidden.float(), self._active(batch))
        return output.quantized_BTD, output

    def _decode(self, quantized_BTD: Tensor, samples: int) -> Tensor:
        generated = separated(self.model.decode_hidden(quantized_BTD), self.spec.num_audio_channels)
        return generated[..., :samples].float()

    def _reconstruction(self, generated: Tensor, batch: SegmentBatch) -> dict[str, Tensor]:
        """This process' shares of the losses that compare waveforms."""
        settings, target = self.settings, batch.waves
        waves = each_channel(generated), each_channel(target)
        losses = {"mel": self.mel_loss(*waves) * batch.share}
        if self._weight("waveform", batch.step):
            magnitude = target.abs().mean()
            whole = total(magnitude * batch.share)
            # Relative to the magnitude of all segments of the step, wherever they are.
            own_share = batch.share * magnitude.clamp(min=QUIETEST) / whole.clamp(min=QUIETEST)
            losses["waveform"] = waveform_loss(*waves) * own_share
        if settings.mid_side_weight:
            losses["mid_side"] = self.mel_loss(mid_side(generated), mid_side(target)) * batch.share
        return losses

    def _semantic(
        self, batch: SegmentBatch, quantized: Tensor, reconstruction: Tensor
    ) -> tuple[Tensor, Tensor | float]:
        """This process' share of the audio-to-text loss, and its weight."""
        assert self.listener is not None
        assert batch.transcripts is not None
        texts, settings = batch.transcripts, self.settings.semantic
        loss = self.listener.network(quantized, texts.frames_B, texts.text_BL, texts.lengths_B, texts.tags_B)
        tokens = texts.num_targets.to(loss.dtype)
        loss = loss * (tokens / total(tokens).clamp(min=1))
        if settings.scaling is SemanticScaling.constant:
            return loss, settings.weight
        factor = norm_factor(loss, reconstruction, quantized, settings.weight, total)
        self.log("train/semantic_factor", factor)
        return loss, factor

    def _active(self, batch: SegmentBatch) -> Tensor | None:
        dropout = self.settings.codebook_dropout_prob
        if dropout == 0:
            return None
        generator = seeded(self.config.seed, _ACTIVE, batch.step)
        drawn = draw_active_codebooks(batch.num_segments, self.spec.num_codebooks, dropout, generator)
        return drawn[batch.rows].to(batch.waves.device)

    def _log_losses(self, shares: dict[str, Tensor]) -> None:
        values = total(torch.stack([value.detach() for value in shares.values()]))
        for name, value in zip(shares, values, strict=True):
            self.log(f"train/{name}", value)
        if "commitment" not in shares:
            return
        self.log("train/codes_moved", float(self._moved))
        if (self.trainer.global_step + 1) % self.config.logger.every_steps == 0:
            # It waits for the device.
            self.log("train/used_frac", self.codes.health().lowest_used_frac)


def _weighted(losses: dict[str, Tensor], weights: dict[str, Any]) -> Tensor:
    return torch.stack([losses[name] * weights[name] for name in losses]).sum()
