"""What every LightningModule here shares: published parameter names, the cursor, the optimizer and its schedule."""

from typing import Any

from lightning.pytorch import LightningModule
from torch import nn

from moss.config.train import TrainConfig
from moss.training.optim import base_rate, build_optimizer, build_scheduler, freeze_parameters


class LitRun(LightningModule):
    """Trains one network.

    Args:
        model: The network; its state dict is the checkpoint's, without a prefix.
        config: The run.

    Raises:
        ConfigError: `optim.freeze` contradicts the model or `lora`.
    """

    model: nn.Module

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.cursor = 0
        freeze_parameters(model, config.optim, config.lora)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The network's tensors under the published names."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load the network; always strict."""
        return self.model.load_state_dict(state_dict, strict=True, assign=assign)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The step to go on with: what was trained, not what the loader has fetched ahead."""
        checkpoint["moss_cursor"] = self.cursor

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `on_save_checkpoint`."""
        self.cursor = checkpoint["moss_cursor"]

    def configure_optimizers(self) -> Any:
        """AdamW and the schedule, stepped once per optimizer step.

        Raises:
            ConfigError: A pattern of `optim.lr_scales` matches nothing that is trained.
        """
        optimizer = build_optimizer(self.model, self.config.optim)
        scheduler = build_scheduler(optimizer, self.config.optim, self.config.schedule.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the norm of all gradients together.

        Lightning refuses that for a fused optimizer in mixed precision, which may unscale gradients itself; there is
        nothing to unscale here, since fp16 with its loss scale is not offered.
        """
        if gradient_clip_val:
            trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(trained, gradient_clip_val)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Log the rate that this step uses."""
        self.log("optim/lr", base_rate(optimizer))
