"""Networks that train beside the tokenizer and are no part of it: discriminators and the audio-to-text model."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from moss.config.train import OptimConfig, TrainConfig
from moss.errors import DataError
from moss.tokenizer.adversarial import adversarial_loss, discriminator_loss, feature_loss, feature_scales
from moss.tokenizer.discriminators import Discriminators
from moss.tokenizer.semantic import SemanticHead
from moss.training.optim import build_optimizer, lr_factor
from moss.training.processes import add_gradients, total


@dataclasses.dataclass(frozen=True, slots=True)
class Pace:
    """When a companion learns, and how fast.

    Attributes:
        lr: Peak rate; it follows the run's warm-up and cosine, counted from `first_step`.
        max_grad_norm: Of the companion's own gradient.
        first_step: Of the run.
        max_steps: Of the run.
    """

    lr: float
    max_grad_norm: float
    first_step: int
    max_steps: int


class Companion(nn.Module):
    """A network with an AdamW of its own, whose weights and moments go to the trainer's state.

    Args:
        name: For messages.
        network: What learns.
        optim: Betas, decay and shape of the schedule, as for the tokenizer.
        pace: Rate, clipping, first step.
    """

    def __init__(self, name: str, network: nn.Module, optim: OptimConfig, pace: Pace) -> None:
        super().__init__()
        self.network = network
        self._name, self._optim, self._pace = name, optim, pace
        own = dataclasses.replace(optim, lr=pace.lr, lr_scales={}, freeze=[])
        self._optimizer = build_optimizer(network, own)
        self._loaded: dict[str, Any] | None = None
        self.last_norm = 0.0
        """Of the gradient of the last step, before clipping."""

    def learn(self, step: int) -> None:
        """Use the gradients that a backward pass has left, and drop them.

        Raises:
            DataError: The gradient is not finite; nothing has changed.
        """
        if self._loaded is not None:
            # Not before: only now the weights are on the device that the moments must be on.
            self._optimizer.load_state_dict(self._loaded)
            self._loaded = None
        add_gradients(self.network.parameters())
        self.last_norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), self._pace.max_grad_norm))
        if not math.isfinite(self.last_norm):
            raise DataError(
                f"step {step}: the gradient of the {self._name} is not finite; lower its rate "
                f"({self._pace.lr}); the last checkpoint is untouched"
            )
        pace, optim = self._pace, self._optim
        factor = lr_factor(
            step - pace.first_step, optim.warmup_steps, pace.max_steps - pace.first_step, optim.min_lr_frac
        )
        for group in self._optimizer.param_groups:
            group["lr"] = pace.lr * factor
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """Weights and moments; nothing but tensors and numbers."""
        moments = self._optimizer.state_dict() if self._loaded is None else self._loaded
        return {"weights": self.network.state_dict(), "optimizer": moments}

    def restore(self, state: dict[str, Any]) -> None:
        """See `state`."""
        self.network.load_state_dict(state["weights"])
        self._loaded = state["optimizer"]


class Adversary(Companion):
    """The discriminators: they learn first, then judge; in float32 whatever the tokenizer computes in.

    On a CPU there is no choice: torch 2.13 returns uninitialised numbers as bfloat16 gradients of strided convolutions
    over bands that are narrower than their kernels.

    Args:
        config: The run; its adversarial stage begins at some step.
        sampling_rate_hz: Of the waves.
    """

    network: Discriminators

    def __init__(self, config: TrainConfig, sampling_rate_hz: int) -> None:
        settings = config.tokenizer_training.discriminator
        assert settings.from_step is not None
        pace = Pace(settings.lr, settings.max_grad_norm, settings.from_step, config.schedule.max_steps)
        super().__init__("discriminators", Discriminators(settings, sampling_rate_hz), config.optim, pace)
        self._judges_from = settings.from_step + settings.warmup_steps

    def discriminate(self, generated_BN: Tensor, target_BN: Tensor, step: int, share: float) -> Tensor:
        """One step of the discriminators.

        Args:
            generated_BN: Reconstructions; nothing flows back into them.
            target_BN: What they are of.
            step: Of the run.
            share: Of the step's segments that this process has.

        Returns:
            This process' share of their loss.
        """
        with torch.autocast(target_BN.device.type, enabled=False):
            real, generated = self.network(target_BN), self.network(generated_BN.detach())
            loss = discriminator_loss(real, generated) * share
            loss.backward()
        self.learn(step)
        return loss.detach()

    def judge(self, generated_BN: Tensor, target_BN: Tensor, step: int, share: float) -> dict[str, Tensor]:
        """What the generator pays: `adversarial` and `feature`, each this process' share; empty while they warm up."""
        if step < self._judges_from:
            return {}
        with torch.autocast(target_BN.device.type, enabled=False):
            with torch.no_grad():
                real = self.network(target_BN)
            self.network.requires_grad_(False)
            generated = self.network(generated_BN)
            self.network.requires_grad_(True)
        scales = total(feature_scales(real) * share)
        return {
            "adversarial": adversarial_loss(generated) * share,
            "feature": feature_loss(real, generated, scales) * share,
        }


class Listener(Companion):
    """The audio-to-text model. Its gradients come with the tokenizer's backward pass.

    Args:
        config: The run.
        input_size: Width of the quantizer's output.
        vocab_size: Of the text tokenizer.
        num_tags: Kinds of text.
    """

    network: SemanticHead

    def __init__(self, config: TrainConfig, input_size: int, vocab_size: int, num_tags: int) -> None:
        head = SemanticHead(config.tokenizer_training.semantic, input_size, vocab_size, num_tags)
        pace = Pace(config.optim.lr, config.optim.max_grad_norm, 0, config.schedule.max_steps)
        super().__init__("audio-to-text model", head, config.optim, pace)
