"""Depth networks: small causal transformers over the channels of one frame.

Each block has two forms of the same arithmetic: over all channels at once for training, and one channel at a time
with static key/value buffers for generation, where it runs tens of times a frame and every operation counts.
"""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from moss.model.channels import ChannelTables
from moss.model.depth_step import QwenStep
from moss.model.packed import PackableLinear

Step = Callable[[Tensor, Tensor, Tensor, int, "Rotary | None"], Tensor]
Rotary = tuple[Tensor, Tensor]
"""Cosines and sines (positions, head_dim) of every depth position."""


@dataclass(slots=True)
class DepthCache:
    """Keys and values of the positions of one frame so far.

    Attributes:
        keys: Shape (layers, rows, kv_heads, capacity, head_dim); values likewise.
        values: See keys.
        steps: How each block takes a position.
        length: Positions held.
    """

    keys: Tensor
    values: Tensor
    steps: "Sequence[Step]"
    length: int = 0


class DepthBlock(nn.Module, abc.ABC):
    """One transformer block, whose attention projections depend on the architecture."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    @abc.abstractmethod
    def project(self, x: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (rows, positions, heads, head_dim), keys and values of the normed input (rows, positions, width)."""

    @abc.abstractmethod
    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual of the attended values (..., heads * head_dim), then the feed-forward part."""

    def fuse_(self) -> None:
        """Lay projections of one input one behind the other, where an architecture has several."""

    def prepared(self) -> Step:
        """What takes the positions of one frame: `step`, or something quicker that does the same."""
        return self.step

    def forward(self, x: Tensor, rotary: Rotary | None) -> Tensor:
        """All positions (rows, positions, width), each seeing those before it and itself."""
        query, key, value = (part.transpose(1, 2) for part in self.project(x, rotary))
        grouped = self.num_heads != self.num_kv_heads
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
        return self.finish(x, attended.transpose(1, 2).flatten(2))

    def step(self, x: Tensor, keys: Tensor, values: Tensor, position: int, rotary: Rotary | None) -> Tensor:
        """The next position (rows, 1, width); keys and values (rows, kv_heads, capacity, head_dim) are extended."""
        query, key, value = self.project(x, rotary)
        keys[:, :, position] = key[:, 0]
        values[:, :, position] = value[:, 0]
        # The heads that share a key stand where attention expects positions, so keys are never repeated.
        attended = functional.scaled_dot_product_attention(
            query.view(len(x), self.num_kv_heads, -1, self.head_dim),
            keys[:, :, : position + 1],
            values[:, :, : position + 1],
        )
        return self.finish(x, attended.reshape(len(x), 1, -1))


class DepthNetwork(nn.Module, abc.ABC):
    """A stack of depth blocks over at most `capacity` positions."""

    def __init__(self, capacity: int, rope_theta: float | None) -> None:
        super().__init__()
        self.capacity = capacity
        self.rope_theta = rope_theta
        self.checkpointing = False
        self._rotary: Rotary | None = None

    @property
    @abc.abstractmethod
    def blocks(self) -> list[DepthBlock]:
        """The stack."""

    @abc.abstractmethod
    def finish(self, x: Tensor) -> Tensor:
        """The final norm."""

    @abc.abstractmethod
    def angles(self, frequencies: Tensor) -> Tensor:
        """Lay the angles (positions, head_dim / 2) out over head_dim."""

    def placed(self, x: Tensor, start: int) -> Tensor:
        """Inputs (rows, positions, width) from depth position `start` on, with learned positions where there are."""
        return x

    def fuse_(self) -> None:
        """Fuse every block's projections."""
        for block in self.blocks:
            block.fuse_()

    def forward(self, x: Tensor) -> Tensor:
        """Outputs for all positions of many frames at once.

        Args:
            x: Inputs, shape (rows, positions, width); row i's positions see only those before them in row i.

        Returns:
            Normed outputs, same shape.
        """
        rotary = self._rotary_for(x)
        if rotary is not None:
            rotary = (rotary[0][: x.shape[1], None], rotary[1][: x.shape[1], None])
        x = self.placed(x, 0)
        for block in self.blocks:
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x = cast(Tensor, checkpoint(block, x, rotary, use_reentrant=False))
            else:
                x = block(x, rotary)
        return self.finish(x)

    @torch.no_grad()
    def start(self, rows: int, positions: int | None = None) -> DepthCache:
        """Buffers for one frame of each of `rows` samples, in the weights' device and dtype.

        Args:
            rows: Samples.
            positions: Depth positions to hold; None for all.
        """
        blocks = self.blocks
        weight = next(self.parameters())
        shape = (len(blocks), rows, blocks[0].num_kv_heads, positions or self.capacity, blocks[0].head_dim)
        steps = [block.prepared() for block in blocks]
        return DepthCache(weight.new_empty(shape), weight.new_empty(shape), steps)

    @torch.no_grad()
    def step(self, x: Tensor, cache: DepthCache) -> Tensor:
        """The next position's normed output (rows, width) from its input (rows, width), without gradients."""
        position = cache.length
        assert position < cache.keys.shape[3], "the frame is complete"
        rotary = self._rotary_for(x)
        if rotary is not None:
            rotary = (rotary[0][position], rotary[1][position])
        x = self.placed(x.unsqueeze(1), position)
        for step, keys, values in zip(cache.steps, cache.keys.unbind(0), cache.values.unbind(0), strict=True):
            x = step(x, keys, values, position, rotary)
        cache.length = position + 1
        return self.finish(x).squeeze(1)

    def _rotary_for(self, x: Tensor) -> Rotary | None:
        """Cosines and sines (capacity, head_dim), computed in fp32 once for each device and dtype."""
        if self.rope_theta is None:
            return None
        if self._rotary is None or self._rotary[0].device != x.device or self._rotary[0].dtype != x.dtype:
            # Tables made inside inference mode could not be used by a later training step.
            with torch.inference_mode(False), torch.autocast(x.device.type, enabled=False):
                half = torch.arange(0, self.blocks[0].head_dim, 2, device=x.device, dtype=torch.float32)
                frequencies = self.rope_theta ** -(half / self.blocks[0].head_dim)
                places = torch.arange(self.capacity, device=x.device, dtype=torch.float32)
                angles = self.angles(places[:, None] * frequencies)
                self._rotary = (angles.cos().to(x.dtype), angles.sin().to(x.dtype))
        return self._rotary


class DepthFrame:
    """One frame of a batch: a depth network fed with the drawn ids channel by channel."""

    def __init__(
        self,
        network: DepthNetwork,
        first: Tensor,
        *,
        positions: int,
        embed: Callable[[int, Tensor], Tensor],
        head: Callable[[int, Tensor], Tensor],
        fed: range,
    ) -> None:
        """Feed the first input.

        Args:
            network: The depth network.
            first: Input of depth position 0, shape (batch, width).
            positions: Depth positions of this frame.
            embed: (channel, ids) -> depth input of a drawn id.
            head: (channel, depth output) -> logits.
            fed: Channels whose ids are inputs; the others' are not seen by later channels.
        """
        self._network, self._embed, self._head, self._fed = network, embed, head, fed
        self._cache = network.start(len(first), positions)
        self._state = network.step(first, self._cache)

    def logits(self, channel: int) -> Tensor:
        """See `Frame`."""
        return self._head(channel, self._state)

    def feed(self, channel: int, ids: Tensor) -> None:
        """See `Frame`."""
        if channel in self._fed:
            self._state = self._network.step(self._embed(channel, ids), self._cache)


class SwiGlu(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, width: int, inner: int, out: int, std: float) -> None:
        super().__init__()
        self.gate_proj = linear(width, inner, std)
        self.up_proj = linear(width, inner, std)
        self.down_proj = linear(inner, out, std)
        self.fused = ChannelTables([self.gate_proj, self.up_proj])

    def fuse_(self) -> None:
        """One matrix product for gate and up."""
        self.fused.fuse_()

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., out)."""
        gate, up = projections(x, self.fused, (self.gate_proj, self.up_proj))
        return cast(Tensor, self.down_proj(functional.silu(gate) * up))


class RmsNorm(nn.Module):
    """Root-mean-square norm with fp32 statistics."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class QwenAttention(nn.Module):
    """Parameters of grouped-query attention with normed queries and keys."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, eps: float, std: float) -> None:
        super().__init__()
        self.q_proj = linear(width, heads * head_dim, std)
        self.k_proj = linear(width, kv_heads * head_dim, std)
        self.v_proj = linear(width, kv_heads * head_dim, std)
        self.o_proj = linear(heads * head_dim, width, std)
        self.q_norm = RmsNorm(head_dim, eps)
        self.k_norm = RmsNorm(head_dim, eps)
        self.fused = ChannelTables([self.q_proj, self.k_proj, self.v_proj])


class QwenDepthBlock(DepthBlock):
    """A Qwen3 block, with rotary positions or without any.

    Source: MOSS-TTS moss_tts_local/modeling_moss_tts.py (no positions) and
    moss_tts_realtime/mossttsrealtime/modeling_mossttsrealtime_local.py (rotary) @58b20a0.
    """

    def __init__(
        self, width: int, *, heads: int, kv_heads: int, head_dim: int, inner: int, eps: float, std: float
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.self_attn = QwenAttention(width, heads, kv_heads, head_dim, eps, std)
        self.mlp = SwiGlu(width, inner, width, std)
        self.input_layernorm = RmsNorm(width, eps)
        self.post_attention_layernorm = RmsNorm(width, eps)

    def fuse_(self) -> None:
        """One matrix product each for q, k, v and for gate, up."""
        self.self_attn.fused.fuse_()
        self.mlp.fuse_()

    def prepared(self) -> Step:
        """See `DepthBlock`."""
        return QwenStep(self)

    def project(self, x: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
        """See `DepthBlock`."""
        attention = self.self_attn
        linears = (attention.q_proj, attention.k_proj, attention.v_proj)
        parts = projections(self.input_layernorm(x), attention.fused, linears)
        query, key, value = (part.unflatten(-1, (-1, self.head_dim)) for part in parts)
        query, key = attention.q_norm(query), attention.k_norm(key)
        if rotary is not None:
            cos, sin = rotary
            query = query * cos + _half_turned(query) * sin
            key = key * cos + _half_turned(key) * sin
        return query, key, value

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """See `DepthBlock`."""
        x = x + self.self_attn.o_proj(attended)
        return cast(Tensor, x + self.mlp(self.post_attention_layernorm(x)))


class DepthTransformer(DepthNetwork):
    """Qwen3 blocks and a final norm; `rope_theta=None` leaves positions out altogether."""

    def __init__(
        self,
        width: int,
        *,
        num_layers: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        intermediate_size: int,
        capacity: int,
        rope_theta: float | None,
        eps: float,
        std: float,
    ) -> None:
        """Normal weights of `std`, unit norms."""
        super().__init__(capacity, rope_theta)
        self.layers = nn.ModuleList(
            QwenDepthBlock(
                width,
                heads=num_heads,
                kv_heads=num_kv_heads,
                head_dim=head_dim,
                inner=intermediate_size,
                eps=eps,
                std=std,
            )
            for _ in range(num_layers)
        )
        self.norm = RmsNorm(width, eps)

    @property
    def blocks(self) -> list[DepthBlock]:
        """See `DepthNetwork`."""
        return cast(list[DepthBlock], list(self.layers))

    def angles(self, frequencies: Tensor) -> Tensor:
        """The halves of a head turn together."""
        return torch.cat([frequencies, frequencies], dim=-1)

    def finish(self, x: Tensor) -> Tensor:
        """See `DepthNetwork`."""
        return cast(Tensor, self.norm(x))


def linear(width: int, out: int, std: float, *, bias: bool = False) -> PackableLinear:
    """A linear layer with normal weights of `std` and zero bias."""
    made = PackableLinear(width, out, bias=bias)
    nn.init.normal_(made.weight, std=std)
    if bias:
        nn.init.zeros_(made.bias)
    return made


def projections(x: Tensor, fused: ChannelTables, linears: Sequence[nn.Linear]) -> Sequence[Tensor]:
    """Several linear layers of one input, as one matrix product where their weights are fused."""
    stacked = fused.stacked
    # In training the parameters themselves must be used: gradients belong to them.
    if stacked is None or torch.is_grad_enabled():
        return [layer(x) for layer in linears]
    return torch.split(fused.product(x, stacked), [layer.out_features for layer in linears], dim=-1)


def _half_turned(x: Tensor) -> Tensor:
    """(a, b) -> (-b, a) on the halves of the last dimension."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)
