"""Gradients of a model against published ones."""

import torch
from torch import Tensor, nn


def check_gradients(model: nn.Module, expected: dict[str, Tensor | None], skip: set[str] | None = None) -> None:
    """Within 1e-5 relative to a parameter's largest entry; a parameter without a gradient counts as zero.

    Args:
        model: After `backward`.
        expected: Published gradients by parameter name, None where there is none.
        skip: Parameters whose published gradient is not recorded.
    """
    parameters = {name: value for name, value in model.named_parameters(remove_duplicate=False)}
    assert set(expected) <= set(parameters)
    for name, parameter in parameters.items():
        if skip and name in skip:
            continue
        got = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        want = expected.get(name)
        want = torch.zeros_like(got) if want is None else want.to_dense()
        scale = max(float(want.abs().max()), 1e-3)
        assert float((got - want).abs().max()) <= 1e-5 * scale + 1e-7, name
