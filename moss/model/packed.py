"""Weights laid out for oneDNN: on a CPU it multiplies few vectors several times as fast as MKL does.

For generation only. The packed copy takes as much memory again, so it is made for models that are small beside the
main memory. A copy is used only for the very values that it was made from.
Source: the operators that torch.compile lowers frozen CPU linear layers to.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

MAX_PACKED_BYTES = 4 * 2**30
"""Models up to this size are packed; they then take twice as much."""
_TYPICAL_ROWS = 8
"""Vectors of a product that the layout is chosen for; any other number works too."""


def worth_packing(module: nn.Module) -> bool:
    """Whether a module's weights may be packed: float32 on the CPU, not too many, and oneDNN is there."""
    weights = list(module.parameters())
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    return (
        torch.backends.mkldnn.is_available()
        and size <= MAX_PACKED_BYTES
        and all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
    )


class PackedWeight:
    """The packed copy of one matrix, if there is one. Copying or pickling its owner leaves it behind."""

    def __init__(self) -> None:
        self._packed: Tensor | None = None
        self._made_from: tuple[tuple[int, int], ...] = ()

    def __reduce__(self) -> tuple[type["PackedWeight"], tuple[()]]:
        return PackedWeight, ()

    def pack_(self, weight: Tensor, parts: Sequence[Tensor] | None = None) -> None:
        """Make the copy; nothing happens if it is there and current.

        Args:
            weight: Shape (rows, width).
            parts: The parameters whose rows it consists of, if it is not one itself: a change of any makes the copy
                outdated.
        """
        identity = _identity(parts or [weight])
        if identity == self._made_from:
            return
        with torch.inference_mode(False), torch.no_grad():
            plain = weight.detach().contiguous()
            self._packed = torch.ops.mkldnn._reorder_linear_weight(plain, _TYPICAL_ROWS)
        self._made_from = identity

    def current(self, parts: Sequence[Tensor]) -> Tensor | None:
        """The copy, if it was made from what the parameters hold now."""
        return self._packed if self._packed is not None and _identity(parts) == self._made_from else None


def product(x: Tensor, weight: Tensor, packed: Tensor | None, bias: Tensor | None = None) -> Tensor:
    """`x` (..., width) times the transposed matrix (rows, width), shape (..., rows), by the packed copy if given."""
    if packed is None:
        return functional.linear(x, weight, bias)
    result = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    assert isinstance(result, Tensor)
    return result


class PackableLinear(nn.Linear):
    """A linear layer that generation computes with the packed copy, once there is one."""

    def __init__(self, width: int, out: int, *, bias: bool = False) -> None:
        super().__init__(width, out, bias=bias)
        self.packed = PackedWeight()

    def current(self) -> Tensor | None:
        """The packed copy, if there is one of the present values."""
        return self.packed.current([self.weight])

    def forward(self, x: Tensor) -> Tensor:
        """Multiply: (..., width) -> (..., out)."""
        # Gradients belong to the parameter.
        packed = None if torch.is_grad_enabled() else self.current()
        return product(x, self.weight, packed, self.bias)


def _identity(weights: Sequence[Tensor]) -> tuple[tuple[int, int], ...]:
    """Changes whenever a weight is moved or written to."""
    return tuple((weight.data_ptr(), weight._version) for weight in weights)
