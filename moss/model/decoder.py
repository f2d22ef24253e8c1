"""Incremental forward of the backbone for generation: static key/value buffers and a few fused operations a layer.

Source: transformers' Qwen3Model (arithmetic); gpt-fast (static buffers, attention over the filled prefix).
"""

import functools
import importlib
import importlib.util
import logging

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Qwen3Model

from moss.config.generation import Attention, Offload
from moss.errors import GenerationError
from moss.model.decoder_weights import (
    LayerWeights,
    PackedLayer,
    StreamedLayers,
    copies_beside_work,
    layer_weights,
    packed_layers,
)
from moss.model.packed import product

logger = logging.getLogger(__name__)

_HALF = (torch.float16, torch.bfloat16)


def choose_attention(wanted: Attention, device: torch.device, dtype: torch.dtype) -> Attention:
    """The kernel that will run.

    Raises:
        GenerationError: FlashAttention is wanted where it cannot run.
    """
    installed = importlib.util.find_spec("flash_attn") is not None
    suited = device.type == "cuda" and dtype in _HALF
    chosen = wanted
    if wanted is Attention.auto:
        chosen = Attention.flash_attention_2 if suited and installed else Attention.sdpa
    if chosen is Attention.flash_attention_2 and not (suited and installed):
        lacking = "the package flash-attn is not installed" if suited else f"the model is {dtype} on {device.type}"
        raise GenerationError(
            f"attention=flash_attention_2 needs a CUDA device, bfloat16 or float16 weights and the package flash-attn, "
            f"but {lacking}; use attention=auto or attention=sdpa, or change the device, dtype or installation"
        )
    _announce(chosen, device.type)
    return chosen


@functools.cache
def _announce(attention: Attention, device: str) -> None:
    logger.info("attention: %s on %s", attention.value, device)


def _eager(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Attention spelt out; groups of query heads share a key head."""
    grouped = query.unflatten(1, (key.shape[1], -1))
    scores = grouped @ key.unsqueeze(2).transpose(-1, -2) * query.shape[-1] ** -0.5
    if causal:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~(mask if mask.dim() == 2 else mask.unsqueeze(1)), float("-inf"))
    attended: Tensor = scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value.unsqueeze(2)
    return attended.flatten(1, 2)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    attended = functional.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, enable_gqa=True)
    assert isinstance(attended, Tensor)
    return attended


def _flash(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """FlashAttention where all positions are visible; it knows no masks."""
    if mask is not None and mask.dim() > 2:
        return _sdpa(query, key, value, mask, causal)
    flash_attn_func = importlib.import_module("flash_attn").flash_attn_func
    # Its causal rule aligns the last query with the last key, which is that of chunks after a prefix.
    attended = flash_attn_func(
        *(tensor.transpose(1, 2) for tensor in (query, key, value)), causal=causal or mask is not None
    )
    assert isinstance(attended, Tensor)
    return attended.transpose(1, 2)


_KERNELS = {Attention.eager: _eager, Attention.sdpa: _sdpa, Attention.flash_attention_2: _flash}


class BackboneDecoder:
    """Static key/value buffers for one batch; incremental forward without transformers' overhead per step.

    Positions that were never masked cost no mask, and attention reads the filled prefix only.

    Attributes:
        batch: Rows of the batch.
        length: Positions held.
        capacity: Positions that fit before the buffers grow.
        attention: The kernel at work.
    """

    def __init__(
        self,
        backbone: Qwen3Model,
        batch: int,
        capacity: int,
        *,
        attention: Attention = Attention.auto,
        offload: Offload = Offload.none,
        device: torch.device | str | None = None,
    ) -> None:
        """Join the projections and allocate.

        Args:
            backbone: In eval mode; its joined weights stay valid for every other use. With offload to a CUDA device
                its blocks move to pinned memory once, where later decoders find them.
            batch: Rows.
            capacity: Positions to make room for; more are taken when needed.
            attention: Wanted kernel.
            offload: Where the blocks' weights wait.
            device: Where the work is done; by default that of the final norm.

        Raises:
            GenerationError: The kernel cannot run here, or an adapter is not merged.
        """
        config = backbone.config
        assert config.num_key_value_heads is not None
        final_norm = backbone.norm.weight.detach()
        self.device = torch.device(device) if device is not None else final_norm.device
        self.attention = choose_attention(attention, self.device, final_norm.dtype)
        self._attend = _KERNELS[self.attention]
        streamed = offload is Offload.cpu
        weights = layer_weights(backbone, pinned=streamed and copies_beside_work(self.device))
        self._layers = StreamedLayers(weights, self.device) if streamed else weights
        self._packed = [PackedLayer()] * len(weights) if streamed else packed_layers(backbone, weights)
        self._final_norm, self._dtype = final_norm.to(self.device), final_norm.dtype
        self._rotary, self._eps = backbone.rotary_emb, config.rms_norm_eps
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_dim, self._width = weights[0].query_key_norm.shape[1], len(final_norm)
        self.batch, self.length, self.capacity = batch, 0, 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        # Set from the first masked position on: which positions are visible, and how many each row has.
        self._visible: Tensor | None = None
        self._counts: Tensor | None = None
        self._num_layers = len(weights)
        self._allocate(max(capacity, 1))

    @torch.inference_mode()
    def extend(self, embedded: Tensor, mask: Tensor | None = None) -> Tensor:
        """Append positions and run them.

        Args:
            embedded: Shape (batch, positions, width).
            mask: Bool (batch, positions); False is never attended to by later positions and does not advance the
                rotary position (left padding, stopped samples). None: all True.

        Returns:
            Final normed hidden states, shape (batch, positions, width); meaningless where masked.
        """
        batch, positions, width = embedded.shape
        assert batch == self.batch, "the batch is fixed; see keep"
        start, end = self.length, self.length + positions
        if end > self.capacity:
            self._allocate(max(2 * self.capacity, end))
        cos, sin = self._rotation(start, end, mask)
        seen, causal = self._mask(start, end, mask)
        x = embedded.reshape(batch * positions, width)
        blocks = iter(self._layers)
        for index in range(self._num_layers):
            # No name holds a streamed block while the one after the next is fetched.
            x = self._block(index, next(blocks), x, cos, sin, seen, causal, start, end)
        self.length = end
        return functional.rms_norm(x, (width,), self._final_norm, self._eps).view(batch, positions, width)

    @torch.inference_mode()
    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on."""
        assert 0 <= length <= self.length, "only held positions can be forgotten"
        self.length = length
        if self._visible is not None:
            self._counts = self._visible[:, :length].sum(1)

    @torch.inference_mode()
    def keep(self, rows: Tensor) -> None:
        """Go on with some rows of the batch only.

        Args:
            rows: Their indices, on the decoder's device.
        """
        self.batch = len(rows)
        for buffers in (self._keys, self._values):
            for index, buffer in enumerate(buffers):
                kept = buffer.new_empty(self.batch, *buffer.shape[1:])
                kept[:, :, : self.length] = buffer[rows, :, : self.length]
                buffers[index] = kept
        if self._visible is not None and self._counts is not None:
            self._visible, self._counts = self._visible[rows], self._counts[rows]
            if bool((self._counts == self.length).all()):
                self._visible = self._counts = None

    def _block(
        self,
        index: int,
        weights: LayerWeights,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        seen: Tensor | None,
        causal: bool,
        start: int,
        end: int,
    ) -> Tensor:
        """One decoder block on (batch * positions, width)."""
        batch, positions, heads, kv_heads = self.batch, end - start, self._heads, self._kv_heads
        packed = self._packed[index]
        normed = functional.rms_norm(x, (self._width,), weights.input_norm, self._eps)
        mixed = product(normed, weights.query_key_value, packed.query_key_value)
        mixed = mixed.view(batch, positions, -1, self._head_dim)
        turned = functional.rms_norm(mixed[:, :, : heads + kv_heads], (self._head_dim,), None, self._eps)
        turned = turned * weights.query_key_norm
        # rotate_half(x) * sin, the sign of the first half moved into the table.
        turned = torch.addcmul(turned * cos, turned.roll(self._head_dim // 2, -1), sin)
        keys, values = self._keys[index], self._values[index]
        keys[:, :, start:end] = turned[:, :, heads:].transpose(1, 2)
        values[:, :, start:end] = mixed[:, :, heads + kv_heads :].transpose(1, 2)
        keys, values = keys[:, :, :end], values[:, :, :end]
        if positions == 1:
            # A group of query heads takes the place of positions, so that keys need not be repeated.
            query = turned[:, 0, :heads].unflatten(1, (kv_heads, heads // kv_heads))
            attended = self._attend(query, keys, values, seen, False).reshape(batch, -1)
        else:
            query = turned[:, :, :heads].transpose(1, 2)
            attended = self._attend(query, keys, values, seen, causal).transpose(1, 2)
            attended = attended.reshape(batch * positions, -1)
        x = x + product(attended, weights.attention_out, packed.attention_out)
        normed = functional.rms_norm(x, (self._width,), weights.mlp_norm, self._eps)
        gate, up = product(normed, weights.gate_up, packed.gate_up).chunk(2, -1)
        return x + product(functional.silu(gate) * up, weights.down, packed.down)

    def _rotation(self, start: int, end: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine of the new positions, broadcastable to (batch, positions, heads, head_dim)."""
        if mask is not None and self._counts is None and not bool(mask.all()):
            self._counts = torch.full((self.batch,), start, device=self.device)
            self._visible = torch.ones(self.batch, self.capacity, dtype=torch.bool, device=self.device)
        if self._counts is None:
            return self._cos[start:end], self._sin[start:end]
        if mask is None:
            places = self._counts.unsqueeze(1) + torch.arange(end - start, device=self.device)
            self._counts = self._counts + (end - start)
        else:
            before = mask.cumsum(1)
            places = self._counts.unsqueeze(1) + before - mask.long()
            self._counts = self._counts + before[:, -1]
        return self._cos[places], self._sin[places]

    def _mask(self, start: int, end: int, mask: Tensor | None) -> tuple[Tensor | None, bool]:
        """What the new positions see (bool, or None for everything before them), and whether causal suffices."""
        device, positions = self.device, end - start
        if self._visible is None:
            if positions == 1 or start == 0:
                return None, positions > 1
            return torch.ones(positions, end, dtype=torch.bool, device=device).tril(start), False
        self._visible[:, start:end] = True if mask is None else mask
        seen = self._visible[:, None, None, :end]
        if positions == 1 and mask is None:
            return seen, False
        # A masked position sees itself, lest its attention be empty and its values not a number.
        own = torch.arange(start, end, device=device).unsqueeze(1) == torch.arange(end, device=device)
        past = torch.ones(positions, end, dtype=torch.bool, device=device).tril(start)
        return (seen & past) | own, False

    @torch.inference_mode()
    def _allocate(self, capacity: int) -> None:
        """Buffers and rotary tables for `capacity` positions, what is held included."""
        shape = (self.batch, self._kv_heads, capacity, self._head_dim)
        for buffers in (self._keys, self._values):
            for index in range(self._num_layers):
                grown = torch.empty(shape, dtype=self._dtype, device=self.device)
                if self.length:
                    grown[:, :, : self.length] = buffers[index][:, :, : self.length]
                buffers[index : index + 1] = [grown]
        if self._visible is not None:
            longer = torch.ones(self.batch, capacity, dtype=torch.bool, device=self.device)
            longer[:, : self.length] = self._visible[:, : self.length]
            self._visible = longer
        self.capacity = capacity
        places = torch.arange(capacity, device=self.device).unsqueeze(0)
        cos, sin = self._rotary(torch.empty(0, dtype=self._dtype, device=self.device), places)
        sign = torch.ones(self._head_dim, dtype=self._dtype, device=self.device)
        sign[: self._head_dim // 2] = -1
        self._cos, self._sin = cos[0].unsqueeze(1), (sin[0] * sign).unsqueeze(1)
