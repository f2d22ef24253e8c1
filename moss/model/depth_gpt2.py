"""The depth network of MossTTSLocal v1.5: GPT-2-like blocks with LayerNorm, biases and a plain feed-forward part.

Source: MOSS-TTS moss_tts_local_v1.5/gpt2_decoder.py @58b20a0; linear layers are (out, in), not GPT-2's Conv1D.
"""

from typing import cast

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from moss.model.depth import DepthBlock, DepthNetwork, Rotary, linear


class Gpt2Attention(nn.Module):
    """Parameters of attention with one projection for queries, keys and values."""

    def __init__(self, width: int, std: float) -> None:
        super().__init__()
        self.c_attn = linear(width, 3 * width, std, bias=True)
        self.c_proj = linear(width, width, std, bias=True)


class Gpt2Mlp(nn.Module):
    """fc_out(act(fc_in(x)))."""

    def __init__(self, width: int, inner: int, activation: str, std: float) -> None:
        super().__init__()
        self.fc_in = linear(width, inner, std, bias=True)
        self.fc_out = linear(inner, width, std, bias=True)
        self.act = ACT2FN[activation]

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return cast(Tensor, self.fc_out(self.act(self.fc_in(x))))


class Gpt2DepthBlock(DepthBlock):
    """One block; rotary positions turn neighbouring pairs."""

    def __init__(self, width: int, *, heads: int, inner: int, activation: str, eps: float, std: float) -> None:
        super().__init__()
        self.num_heads = self.num_kv_heads = heads
        self.head_dim = width // heads
        self.ln_1 = nn.LayerNorm(width, eps=eps)
        self.attn = Gpt2Attention(width, std)
        self.ln_2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Gpt2Mlp(width, inner, activation, std)

    def project(self, x: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
        """See `DepthBlock`."""
        projected = self.attn.c_attn(self.ln_1(x)).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = projected.unbind(-3)
        if rotary is not None:
            cos, sin = rotary
            query = query * cos + _pairs_turned(query) * sin
            key = key * cos + _pairs_turned(key) * sin
        return query, key, value

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """See `DepthBlock`."""
        x = x + self.attn.c_proj(attended)
        return cast(Tensor, x + self.mlp(self.ln_2(x)))


class Gpt2Depth(DepthNetwork):
    """GPT-2-like blocks; positions are learned, or rotary where `rope_theta` is given."""

    def __init__(
        self,
        width: int,
        *,
        num_layers: int,
        num_heads: int,
        intermediate_size: int,
        capacity: int,
        rope_theta: float | None,
        activation: str,
        eps: float,
        std: float,
    ) -> None:
        """Normal weights of `std`, zero biases, unit norms; the learned positions have one spare row."""
        super().__init__(capacity, rope_theta)
        self.wpe = nn.Embedding(capacity + 1, width) if rope_theta is None else None
        if self.wpe is not None:
            nn.init.normal_(self.wpe.weight, std=std)
        self.h = nn.ModuleList(
            Gpt2DepthBlock(width, heads=num_heads, inner=intermediate_size, activation=activation, eps=eps, std=std)
            for _ in range(num_layers)
        )
        self.ln_f = nn.LayerNorm(width, eps=eps)

    @property
    def blocks(self) -> list[DepthBlock]:
        """See `DepthNetwork`."""
        return cast(list[DepthBlock], list(self.h))

    def placed(self, x: Tensor, start: int) -> Tensor:
        """Add the learned positions."""
        if self.wpe is None:
            return x
        return x + self.wpe.weight[start : start + x.shape[1]]

    def angles(self, frequencies: Tensor) -> Tensor:
        """Neighbours of a head turn together."""
        return frequencies.repeat_interleave(2, dim=-1)

    def finish(self, x: Tensor) -> Tensor:
        """See `DepthNetwork`."""
        return cast(Tensor, self.ln_f(x))


def _pairs_turned(x: Tensor) -> Tensor:
    """(a, b) -> (-b, a) on neighbouring pairs of the last dimension."""
    pairs = x.unflatten(-1, (-1, 2))
    return torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
