"""What is trained and how fast: freezing, AdamW with decay and rate groups, a schedule counted in optimizer steps."""

import math

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from moss.config.train import LoraConfig, OptimConfig
from moss.errors import ConfigError
from moss.model.parameters import parameters_matching


def freeze_parameters(model: nn.Module, config: OptimConfig, lora: LoraConfig) -> None:
    """Stop training what `optim.freeze` names.

    Raises:
        ConfigError: A pattern matches nothing, or nothing that would be trained without it; it names what `lora.train`
            asks to train; or nothing is left to train.
    """
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    wanted: dict[int, str] = {}
    if lora.rank:
        wanted = {
            id(p): pattern for pattern in lora.train for p in parameters_matching(model, pattern, "lora.train").values()
        }
    for pattern in config.freeze:
        found = parameters_matching(model, pattern, "optim.freeze")
        if not any(id(parameter) in trained for parameter in found.values()):
            raise ConfigError(
                f"optim.freeze: {pattern!r} matches only parameters that are not trained anyway, e.g. "
                f"{next(iter(found))}; leave it out"
            )
        for name, parameter in found.items():
            if id(parameter) in wanted:
                raise ConfigError(
                    f"optim.freeze: {pattern!r} and lora.train: {wanted[id(parameter)]!r} both match {name}; "
                    "drop one of them"
                )
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"optim.freeze: {', '.join(config.freeze)} leaves no parameter to train; drop a pattern")


def build_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW that decays matrices only: norms, gains, biases and embedding tables keep their scale.

    Parameters outside `lr_scales` come first, then those of each pattern in the order of the setting; each group's
    `scale` is its multiple of `lr`. The order depends on the model and the settings alone, so that a resumed run finds
    its moments where they were.

    Raises:
        ConfigError: A pattern of `lr_scales` matches no parameter that is trained.
    """
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    chosen: dict[int, int] = {}
    for number, pattern in enumerate(config.lr_scales, 1):
        found = parameters_matching(model, pattern, "optim.lr_scales")
        for parameter in found.values():
            chosen.setdefault(id(parameter), number)
        if not any(parameter.requires_grad for parameter in found.values()):
            raise ConfigError(
                f"optim.lr_scales: {pattern!r} matches only parameters that are not trained, e.g. "
                f"{next(iter(found))}; leave it out"
            )
    groups = []
    for number, scale in enumerate([1.0, *config.lr_scales.values()]):
        mine = [p for p in model.parameters() if p.requires_grad and chosen.get(id(p), 0) == number]
        # Gains of weight norm have one value a row, and as many axes as the matrix that they scale.
        decayed = [p for p in mine if p.dim() >= 2 and p.numel() > p.shape[0] and id(p) not in embeddings]
        taken = {id(p) for p in decayed}
        kept = [p for p in mine if id(p) not in taken]
        rate = {"lr": config.lr * scale, "scale": scale}
        groups += [{"params": decayed, "weight_decay": config.weight_decay, **rate}]
        groups += [{"params": kept, "weight_decay": 0.0, **rate}]
    betas = (config.betas[0], config.betas[1])
    groups = [group for group in groups if group["params"]]
    # None leaves torch its choice, which False would take away on a GPU.
    return AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=config.fused or None)


def base_rate(optimizer: AdamW) -> float:
    """The rate of parameters outside `lr_scales` at this step."""
    group = optimizer.param_groups[0]
    return float(group["lr"]) / float(group.get("scale", 1.0))


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
    """The schedule of every group, to be stepped once per optimizer step whatever the number of processes."""
    return LambdaLR(optimizer, lambda step: lr_factor(step, config.warmup_steps, max_steps, config.min_lr_frac))
