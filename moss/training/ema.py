"""A moving average of a network's weights, for export and scoring."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from moss.errors import CheckpointError


def warm_decay(decay: float, step: int) -> float:
    """Decay at a step (0 first): the average of a short run forgets its random start first, then tends to `decay`."""
    return min(decay, (1 + step) / (10 + step))


class EmaWeights:
    """Averages all floating-point tensors of a state dict; others are copied.

    What jumps instead of learning (fitted codebooks, moved codes) must jump here too: `copy_from`, `copy_rows`. An
    average of two unrelated places is a third one that nobody asked for.

    Args:
        model: Its tensors are the first average.
    """

    def __init__(self, model: nn.Module) -> None:
        self._average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, decay: float) -> None:
        """Move the average towards `model`: decay * average + (1 - decay) * weights."""
        averages, weights = [], []
        for name, tensor in self._matching(model).items():
            if tensor.is_floating_point():
                averages.append(self._average[name])
                weights.append(tensor)
            else:
                self._average[name].copy_(tensor)
        torch._foreach_lerp_(averages, weights, 1 - decay)

    @torch.no_grad()
    def copy_from(self, model: nn.Module, prefix: str = "") -> None:
        """Take over the tensors of `model` whose names start with `prefix` as they are."""
        for name, tensor in self._matching(model).items():
            if name.startswith(prefix):
                self._average[name].copy_(tensor)

    @torch.no_grad()
    def copy_rows(self, model: nn.Module, name: str, rows: Tensor) -> None:
        """Take over some rows (indices, or bool per row) of one tensor as they are."""
        average = self._average[name]
        chosen = rows.to(average.device)
        average[chosen] = self._matching(model)[name].to(average)[chosen]

    def copy_to(self, model: nn.Module) -> None:
        """Write the average into `model`."""
        self._matching(model)
        model.load_state_dict(self._average, strict=True)

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """`model` has the averaged weights inside the block, and its own again afterwards, whatever happens."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self.copy_to(model)
        try:
            yield
        finally:
            model.load_state_dict(own, strict=True)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged tensors under the model's names: copies, fit to be saved."""
        return {name: tensor.clone() for name, tensor in self._average.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved average.

        Raises:
            CheckpointError: Names or shapes are not those of this average; all are listed.
        """
        problems = _differences(self._average, state)
        if problems:
            raise CheckpointError(
                f"moving average of the weights: the saved one is of another model: {'; '.join(problems)}. "
                "Resume with the settings it was saved with, or start a new run"
            )
        for name, tensor in state.items():
            self._average[name].copy_(tensor)

    def _matching(self, model: nn.Module) -> dict[str, Tensor]:
        state: dict[str, Tensor] = model.state_dict()
        problems = _differences(self._average, state)
        assert not problems, f"the average is of another model: {problems}"
        return state


def _differences(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> list[str]:
    """What `got` lacks, has too much, or has in another shape."""
    problems = [f"{name} is missing" for name in expected if name not in got]
    problems += [f"{name} is unknown" for name in got if name not in expected]
    problems += [
        f"{name} is {tuple(got[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in got and got[name].shape != tensor.shape
    ]
    return problems
