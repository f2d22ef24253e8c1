"""AdamW with decay groups and a schedule counted in optimizer steps."""

import math

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from moss.config.train import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW that decays matrices only: norms, biases and embedding tables keep their scale."""
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    decayed, kept = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            matrix = parameter.dim() >= 2 and id(parameter) not in embeddings
            (decayed if matrix else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    betas = (config.betas[0], config.betas[1])
    return AdamW([group for group in groups if group["params"]], lr=config.lr, betas=betas, eps=config.eps)


def lr_factor(step: int, warmup_steps: int, max_steps: int, min_lr_frac: float) -> float:
    """Share of the peak rate at an optimizer step: linear warm-up, then cosine down to `min_lr_frac`.

    Args:
        step: Steps taken so far; the first update uses step 0.
        warmup_steps: Updates until the peak.
        max_steps: Updates of the whole run.
        min_lr_frac: Where the cosine ends.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return min_lr_frac + (1 - min_lr_frac) * 0.5 * (1 + math.cos(math.pi * progress))


def build_scheduler(optimizer: AdamW, config: OptimConfig, max_steps: int) -> LambdaLR:
    """The schedule, to be stepped once per optimizer step whatever the number of processes."""
    return LambdaLR(optimizer, lambda step: lr_factor(step, config.warmup_steps, max_steps, config.min_lr_frac))
