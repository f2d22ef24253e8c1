"""One depth position of a Qwen3 block in generation, in as few operations as possible.

It runs a hundred times and more a frame on one vector per sample, where the number of operations counts as much as
their size. Same arithmetic as `QwenDepthBlock`; what it prepares is valid for one frame.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from moss.model.packed import product

if TYPE_CHECKING:
    from moss.model.channels import ChannelTables
    from moss.model.depth import QwenDepthBlock, Rotary

Norm = Callable[[Tensor], Tensor]


class QwenStep:
    """A block ready to take positions; made anew for each frame, so that changed weights are never missed."""

    def __init__(self, block: "QwenDepthBlock") -> None:
        attention, mlp = block.self_attn, block.mlp
        heads, kv_heads, head_dim = block.num_heads, block.num_kv_heads, block.head_dim
        self._heads, self._kv_heads, self._head_dim = heads, kv_heads, head_dim
        self._qkv, self._qkv_packed = _joined(attention.fused)
        self._gate_up, self._gate_up_packed = _joined(mlp.fused)
        self._out, self._out_packed = attention.o_proj.weight, attention.o_proj.current()
        self._down, self._down_packed = mlp.down_proj.weight, mlp.down_proj.current()
        queries_and_keys = torch.cat(
            [attention.q_norm.weight.expand(heads, -1), attention.k_norm.weight.expand(kv_heads, -1)]
        )
        self._input_norm = norm_for(block.input_layernorm.weight, block.input_layernorm.eps)
        self._head_norm = norm_for(queries_and_keys, attention.q_norm.eps)
        self._mlp_norm = norm_for(block.post_attention_layernorm.weight, block.post_attention_layernorm.eps)

    def __call__(self, x: Tensor, keys: Tensor, values: Tensor, position: int, rotary: "Rotary | None") -> Tensor:
        """See `DepthBlock.step`."""
        rows = len(x)
        mixed = product(self._input_norm(x), self._qkv, self._qkv_packed).view(rows, -1, self._head_dim)
        turned = self._head_norm(mixed[:, : self._heads + self._kv_heads])
        if rotary is not None:
            cos, sin = rotary
            first, second = turned.chunk(2, dim=-1)
            turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
        keys[:, :, position] = turned[:, self._heads :]
        values[:, :, position] = mixed[:, self._heads + self._kv_heads :]
        # The heads that share a key stand where attention expects positions, so keys are never repeated.
        attended = functional.scaled_dot_product_attention(
            turned[:, : self._heads].reshape(rows, self._kv_heads, -1, self._head_dim),
            keys[:, :, : position + 1],
            values[:, :, : position + 1],
        )
        x = x + product(attended.reshape(rows, 1, -1), self._out, self._out_packed)
        gate, up = product(self._mlp_norm(x), self._gate_up, self._gate_up_packed).chunk(2, dim=-1)
        return x + product(functional.silu(gate) * up, self._down, self._down_packed)


def norm_for(weight: Tensor, eps: float) -> Norm:
    """Root-mean-square norm over the last dimension, times `weight` (..., width).

    On a CPU `torch.rms_norm` takes nine operations; this takes four.
    """
    width = weight.shape[-1]
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return lambda x: functional.rms_norm(x, (width,), None, eps) * weight
    scaled = weight * width**0.5
    # |x|² + width eps = width (mean of x² + eps)
    floor = torch.full((), (width * eps) ** 0.5)
    return lambda x: x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), floor) * scaled


def _joined(fused: "ChannelTables") -> tuple[Tensor, Tensor | None]:
    """The matrix of projections of one input, and its packed copy where there is one."""
    stacked = fused.stacked
    if stacked is None:
        return torch.cat([module.weight for module in fused.modules]), None  # type: ignore[arg-type]
    return stacked, fused.current()
