"""The processes of one run: how many there are, which one this is, and sums over all of them.

torchrun or srun starts them, one per device; nothing here starts any. With one process every function is the identity,
so that such a run computes what it computes without this module.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from moss.errors import ConfigError

T = TypeVar("T")

BUCKET_VALUES = 2**24
"""Gradients that are added in one exchange: 64 MiB of float32."""


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those of the run."""

    count: int = 1
    rank: int = 0
    per_node: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and talks to people."""
        return self.rank == 0

    @property
    def num_nodes(self) -> int:
        """Machines of the run."""
        return self.count // self.per_node

    def share(self, items: Sequence[T]) -> list[T]:
        """This process' items: every `count`-th, so that shares differ by one item at most."""
        return list(items[self.rank :: self.count])


def processes(environment: Mapping[str, str] = os.environ) -> Processes:
    """What torchrun or srun says in the environment; one process where neither speaks.

    Raises:
        ConfigError: Counts contradict or are incomplete.
    """
    if int(environment.get("WORLD_SIZE", 1)) > 1:
        names = ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE")
    elif int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        names = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_TASKS_PER_NODE")
    else:
        return Processes()
    missing = [name for name in names if name not in environment]
    if missing:
        raise ConfigError(
            f"{names[0]}={environment[names[0]]} but {', '.join(missing)} is not set; start several processes with "
            "torchrun --nproc-per-node N train.py ... or srun, or unset it"
        )
    # srun writes "4(x2)" for four tasks on each of two nodes.
    count, rank, per_node = (int(environment[name].partition("(")[0]) for name in names)
    if count % per_node or not 0 <= rank < count:
        raise ConfigError(
            f"{names[0]}={count} does not fit {names[1]}={rank} and {names[2]}={per_node}: every node has the same "
            "number of processes, and ranks run from 0"
        )
    return Processes(count, rank, per_node)


class SameOnAll(DDPStrategy):
    """Lightning's processes without its gradient exchange.

    Steps with optimizers of their own add up gradients themselves, see `add_gradients`. Weights are the same everywhere
    because all start from the run's seed.
    """

    def configure_ddp(self) -> None:
        """Leave the module as it is."""


def trainer_devices(mine: Processes) -> dict[str, Any]:
    """Arguments of Lightning's Trainer."""
    if mine.count == 1:
        return {"devices": 1}
    return {"devices": mine.per_node, "num_nodes": mine.num_nodes, "strategy": SameOnAll()}


def are_several() -> bool:
    """Whether other processes take part in this run."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def total(values: Tensor) -> Tensor:
    """Sum over all processes; no gradient flows through it."""
    if not are_several():
        return values
    summed = values.detach().clone()
    torch.distributed.all_reduce(summed)
    return summed


def any_of_all(flag: bool, device: torch.device) -> bool:
    """Whether any process says yes."""
    return flag if not are_several() else bool(total(torch.tensor([int(flag)], device=device)))


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the first process."""
    if are_several():
        for tensor in tensors:
            torch.distributed.broadcast(tensor, 0)


def add_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum gradients over all processes, in place; where only some have one, the others get it too."""
    if not are_several():
        return
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    have = torch.tensor([float(parameter.grad is not None) for parameter in wanted], device=wanted[0].device)
    bucket: list[Tensor] = []
    for parameter, any_has in zip(wanted, total(have).tolist(), strict=True):
        if not any_has:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        if sum(gradient.numel() for gradient in bucket) >= BUCKET_VALUES:
            _add(bucket)
            bucket = []
    _add(bucket)


def _add(gradients: list[Tensor]) -> None:
    if not gradients:
        return
    flat = total(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
