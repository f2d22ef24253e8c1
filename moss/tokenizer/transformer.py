"""Causal sliding-window transformer stages and the patch operators around them.

Everything here is (batch, position, feature). A stage can be run over a whole sequence, or chunk by chunk with a
`StageState`: both give the same result, since keys and values are cached before any of them is dropped.
Source: MOSS-Audio-Tokenizer modeling_moss_audio_tokenizer.py @56df9ee.
"""

import functools
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moss.config.tokenizer import TransformerStage

SMALLEST_BLOCK = 64
"""Queries that share one window of keys. Smaller products are slow, larger windows waste work at their ends."""
PIECE_POSITIONS = 1024
"""Without gradients a stage runs over so many positions at once (shared among the items of a batch): memory then grows
with a long sequence only by its input and output, and what one layer writes is still in the cache for the next."""
SMALLEST_PIECE = 256
MOVES_APART = 8


@dataclass(slots=True)
class _Room:
    """Memory behind the cached keys and values of a layer, so that few new positions do not copy the whole window.

    It is only ever written behind its end: all views that were taken of it stay as they are.
    """

    memory: Tensor
    """(2, B, H, capacity, Dh): keys and values."""
    end: int
    keys: Tensor
    """The view that its owner holds. Whoever holds another one, after a copy or a restore, must not write here."""


@dataclass(slots=True)
class StageState:
    """What one stage remembers of a stream, or of a batch of streams that are pushed together.

    That is the position it stands at, and each layer's recent keys and values.
    """

    position: int = 0
    keys: list[Tensor] = field(default_factory=list)
    """Per layer (B, H, <= context - 1, Dh), already rotated."""
    values: list[Tensor] = field(default_factory=list)
    behind: list[int] | None = None
    """How many positions each item of a batch of streams stands behind the furthest, which is at `position`; the
    oldest cached keys of such an item may be filling. Null: all stand at `position`."""
    published_ring: bool = False
    """Follow the published cache: it holds `context` keys, and a chunk overwrites the oldest before they are read."""
    rooms: list[_Room | None] = field(default_factory=list, repr=False)
    """Per layer, only to save copies; nothing is lost with them."""

    def num_cached(self, context: int) -> int:
        """How many keys each layer holds."""
        return min(self.position, context if self.published_ring else context - 1)

    def filling(self, context: int) -> list[int] | None:
        """How many of each item's oldest cached keys stand before its start; null where none do."""
        cached = self.num_cached(context)
        counts = [max(0, cached - self.position + behind) for behind in self.behind or ()]
        return counts if any(counts) else None

    def extend(self, layer: int, keys: Tensor, values: Tensor, context: int) -> tuple[Tensor, Tensor]:
        """Join new keys and values (B, H, P, Dh) to the layer's cached ones, and cache the last of them.

        Returns:
            Keys and values (B, H, cached + P, Dh) for the attention of the new positions.
        """
        if layer == len(self.keys):
            self.keys.append(keys[:, :, :0])
            self.values.append(values[:, :, :0])
        while layer >= len(self.rooms):
            self.rooms.append(None)
        spare = min(context // 4, SMALLEST_PIECE)
        if keys.shape[2] > spare:
            joined_keys = torch.cat((self.keys[layer], keys), 2)
            joined_values = torch.cat((self.values[layer], values), 2)
            self.rooms[layer] = None
        else:
            joined_keys, joined_values = self._append(layer, keys, values, spare)
        if self.published_ring:
            joined_keys, joined_values = joined_keys[:, :, -context:], joined_values[:, :, -context:]
        # Narrowed only after the window was joined: a chunk's first query needs the oldest cached key.
        kept = max(0, joined_keys.shape[2] - (context if self.published_ring else context - 1))
        self.keys[layer] = _tail(joined_keys, kept)
        self.values[layer] = _tail(joined_values, kept)
        room = self.rooms[layer]
        if room is not None:
            room.keys = self.keys[layer]
        return joined_keys, joined_values

    def _append(self, layer: int, keys: Tensor, values: Tensor, spare: int) -> tuple[Tensor, Tensor]:
        cached, new = self.keys[layer].shape[2], keys.shape[2]
        room = self.rooms[layer]
        if room is None or room.keys is not self.keys[layer] or room.end + new > room.memory.shape[3]:
            if room is None:
                # Layers then move at different steps: neither the time nor the memory of one step stands out.
                spare = spare * (layer % MOVES_APART + 1) // MOVES_APART
            batch, heads, _, size = keys.shape
            # Later steps write to it, which those outside inference mode could not if it were made inside.
            with torch.inference_mode(False):
                memory = keys.new_empty(2, batch, heads, cached + new + spare, size)
            room = _Room(memory, cached, self.keys[layer])
            room.memory[0, :, :, :cached] = self.keys[layer]
            room.memory[1, :, :, :cached] = self.values[layer]
            self.rooms[layer] = room
        end = room.end + new
        room.memory[0, :, :, room.end : end] = keys
        room.memory[1, :, :, room.end : end] = values
        room.end = end
        window = room.memory[:, :, :, end - new - cached : end]
        return window[0], window[1]


def patchify(x_BPD: Tensor, patch_size: int) -> Tensor:
    """Fold steps into features: (B, P, D) to (B, P / h, D * h); feature d * h + j holds step j of feature d."""
    batch, positions, width = x_BPD.shape
    folded = x_BPD.reshape(batch, positions // patch_size, patch_size, width)
    return folded.transpose(2, 3).reshape(batch, positions // patch_size, width * patch_size)


def unpatchify(x_BPD: Tensor, patch_size: int) -> Tensor:
    """The exact inverse of `patchify`: (B, P, D * h) to (B, P * h, D)."""
    batch, positions, width = x_BPD.shape
    unfolded = x_BPD.reshape(batch, positions, width // patch_size, patch_size)
    return unfolded.transpose(2, 3).reshape(batch, positions * patch_size, width // patch_size)


def rotary_angles(
    start: int | list[int], count: int, head_size: int, theta: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosine and sine (P, Dh / 2) of positions start .. start + count - 1; (B, 1, P, Dh / 2) of one start per item.

    The angles are float64: in float32 they drift audibly after hours of positions.
    """
    positions = torch.arange(count, dtype=torch.float64, device=device)
    if isinstance(start, int):
        positions = positions + start
    else:
        positions = positions + torch.tensor(start, dtype=torch.float64, device=device)[:, None, None]
    angles = positions[..., None] * _frequencies(head_size, theta, device)
    return angles.cos().float(), angles.sin().float()


@functools.lru_cache(maxsize=16)
def _frequencies(head_size: int, theta: float, device: torch.device) -> Tensor:
    """Radians per position (Dh / 2), float64."""
    with torch.inference_mode(False):
        return theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64, device=device) / head_size)


def rotate(x_BHPD: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate adjacent feature pairs (2i, 2i + 1) in float32; shape (B, H, P, Dh) in and out."""
    # A pair is a complex number, and a rotation one product: a single pass over memory.
    pairs = torch.view_as_complex(x_BHPD.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.complex(cosine, sine)).flatten(-2).type_as(x_BHPD)


def windowed_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    context: int,
    block_size: int | None = None,
    filling: list[int] | None = None,
) -> Tensor:
    """Attention in which position p sees exactly the positions (p - context, p].

    Queries are handled in blocks against the keys that any of them can see, so no P x P mask exists. Blocks with a full
    window all look alike and go into one call.

    Args:
        query: (B, H, P, Dh), the last P positions of the sequence.
        keys: (B, H, past + P, Dh).
        values: (B, H, past + P, Dh).
        context: Window in positions, the own one included.
        block_size: Queries per block; by default an eighth of the window.
        filling: How many of each item's first keys are nobody's and are not seen; null for none.

    Returns:
        (B, H, P, Dh).
    """
    positions = query.shape[2]
    past = keys.shape[2] - positions
    block = block_size or max(context // 8, SMALLEST_BLOCK)
    start = 0
    outputs = []
    if past == 0 and filling is None:
        start = min(context, positions)
        asked, seen, heard = query[:, :, :start], keys[:, :, :start], values[:, :, :start]
        outputs.append(F.scaled_dot_product_attention(asked, seen, heard, is_causal=True))
    while start < positions:
        until_full = max(0, context - 1 - past - start)
        blocks = (positions - start) // block if until_full == 0 and filling is None else 0
        stop = start + blocks * block if blocks > 1 else min(start + min(block, until_full or block), positions)
        first = max(0, past + start - context + 1)
        asked, seen, heard = query[:, :, start:stop], keys[:, :, first : past + stop], values[:, :, first : past + stop]
        if blocks > 1:
            outputs.append(_equal_blocks(asked, seen, heard, context, block))
        else:
            unseen = None if filling is None else [count - first for count in filling]
            outputs.append(_one_block(asked, seen, heard, context, unseen))
        start = stop
    return outputs[0] if len(outputs) == 1 else torch.cat([o.transpose(1, 2) for o in outputs], 1).transpose(1, 2)


def _one_block(query: Tensor, keys: Tensor, values: Tensor, context: int, filling: list[int] | None) -> Tensor:
    """Attention of the last positions of `keys` by `query` (B, H, P, Dh)."""
    count, total = query.shape[2], keys.shape[2]
    mask = None
    if count > 1 or total > context:
        mask = _window_mask(count, total, context, query.device, query.dtype)
    if filling is not None and max(filling) > 0:
        hidden = torch.arange(total, device=query.device) < torch.tensor(filling, device=query.device)[:, None]
        empty = torch.zeros((), device=query.device, dtype=query.dtype) if mask is None else mask
        mask = empty.masked_fill(hidden[:, None, None], -torch.inf)
    return F.scaled_dot_product_attention(query, keys, values, mask)


def _equal_blocks(query: Tensor, keys: Tensor, values: Tensor, context: int, block: int) -> Tensor:
    """Attention of `query` (B, H, n * block, Dh) with full windows by `keys` (B, H, context - 1 + n * block, Dh)."""
    seen = context - 1 + block
    mask = _window_mask(block, seen, context, query.device, query.dtype)
    items = []
    for item in range(len(query)):
        queries_nHbD = query[item].unflatten(1, (-1, block)).transpose(0, 1)
        # Windows that overlap are views of the same memory: nothing is copied.
        keys_nHsD, values_nHsD = (x[item].unfold(1, seen, block).permute(1, 0, 3, 2) for x in (keys, values))
        attended = F.scaled_dot_product_attention(queries_nHbD, keys_nHsD, values_nHsD, mask)
        items.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.stack(items).transpose(1, 2) if len(items) > 1 else items[0][None].transpose(1, 2)


@functools.lru_cache(maxsize=32)
def _window_mask(count: int, total: int, context: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Added to the scores (count, total) of the last `count` of `total` positions: 0 where seen, else -infinity.

    Layers and steps share it; one made in inference mode could not take part in training.
    """
    with torch.inference_mode(False):
        at = torch.arange(total - count, total, device=device)[:, None]
        sees = torch.arange(total, device=device)[None, :]
        hidden = (sees > at) | (sees <= at - context)
        return torch.zeros(count, total, device=device, dtype=dtype).masked_fill_(hidden, -torch.inf)


class LayerScale(nn.Module):
    """A learnt factor per feature."""

    def __init__(self, width: int, init: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), init))

    def forward(self, x: Tensor, update: Tensor) -> Tensor:
        """`x` plus the scaled `update`, both of one shape."""
        return torch.addcmul(x, update, self.scale)


class WindowedSelfAttention(nn.Module):
    """Multi-head attention over a causal window, with one fused (3 D, D) weight in rows q, k, v."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_projs = nn.ModuleList([nn.Linear(width, 3 * width, bias=False)])
        self.out_projs = nn.ModuleList([nn.Linear(width, width, bias=False)])

    def forward(
        self, x_BPD: Tensor, rotation: tuple[Tensor, Tensor], context: int, state: StageState | None, layer: int
    ) -> Tensor:
        """(B, P, D) in and out; reads and extends `state` where one is given."""
        fused = self.in_projs[0](x_BPD).unflatten(-1, (3, self.num_heads, -1))
        fused = fused.permute(2, 0, 3, 1, 4)
        query, keys = rotate(fused[:2], *rotation)
        values = fused[2]
        filling = None
        if state is not None:
            filling = state.filling(context)
            keys, values = state.extend(layer, keys, values, context)
        attended = windowed_attention(query, keys, values, context, filling=filling)
        return self.out_projs[0](attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm attention and GELU feed-forward, each scaled per feature before it is added."""

    def __init__(self, config: TransformerStage) -> None:
        super().__init__()
        width = config.hidden_size
        self.self_attn = WindowedSelfAttention(width, config.num_heads)
        self.norm1 = nn.LayerNorm(width, eps=1e-5)
        self.norm2 = nn.LayerNorm(width, eps=1e-5)
        self.linear1 = nn.Linear(width, config.intermediate_size, bias=False)
        self.linear2 = nn.Linear(config.intermediate_size, width, bias=False)
        self.layer_scale_1 = LayerScale(width, config.layer_scale_init)
        self.layer_scale_2 = LayerScale(width, config.layer_scale_init)

    def forward(
        self, x_BPD: Tensor, rotation: tuple[Tensor, Tensor], context: int, state: StageState | None, layer: int
    ) -> Tensor:
        """(B, P, D) in and out."""
        attended = self.self_attn(self.norm1(x_BPD), rotation, context, state, layer)
        x_BPD = self.layer_scale_1(x_BPD, attended)
        return self.layer_scale_2(x_BPD, self.linear2(F.gelu(self.linear1(self.norm2(x_BPD)))))


class BlockStack(nn.Module):
    """The layers of a stage, under the name that the published checkpoints give them."""

    def __init__(self, config: TransformerStage) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))


class Transformer(nn.Module):
    """A stage of the tokenizer: projection in, blocks, projection out."""

    def __init__(self, config: TransformerStage, positions_per_s: float) -> None:
        """Build the stage; `positions_per_s` turns the window from seconds into positions."""
        super().__init__()
        self.context = max(1, int(positions_per_s * config.context_s))
        self.head_size = config.hidden_size // config.num_heads
        self.rope_theta = config.rope_theta
        self.input_proj = _projection(config.input_size, config.hidden_size, config.always_project)
        self.transformer = BlockStack(config)
        self.output_proj = _projection(config.hidden_size, config.output_size, config.always_project)

    def forward(self, x_BPD: Tensor, state: StageState | None = None) -> Tensor:
        """(B, P, input_size) to (B, P, output_size); with a `state`, the next P positions of its stream."""
        piece = max(SMALLEST_PIECE, PIECE_POSITIONS // len(x_BPD))
        if x_BPD.shape[1] > piece and not torch.is_grad_enabled() and not (state is not None and state.published_ring):
            state = state or StageState()
            return torch.cat([self(part, state) for part in x_BPD.split(piece, 1)], 1)
        start = 0 if state is None else state.position
        starts = start if state is None or state.behind is None else [start - behind for behind in state.behind]
        rotation = rotary_angles(starts, x_BPD.shape[1], self.head_size, self.rope_theta, x_BPD.device)
        x_BPD = self.input_proj(x_BPD)
        for layer, block in enumerate(self.transformer.layers):
            x_BPD = block(x_BPD, rotation, self.context, state, layer)
        if state is not None:
            state.position = start + x_BPD.shape[1]
        return self.output_proj(x_BPD)


class Patch(nn.Module):
    """Fold steps into features (encoder) or unfold them (decoder); holds no weights and no state."""

    def __init__(self, patch_size: int, *, unfold: bool) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.unfold = unfold

    def forward(self, x_BPD: Tensor, state: StageState | None = None) -> Tensor:
        """(B, P, D) to (B, P / h, D h), or the inverse."""
        return unpatchify(x_BPD, self.patch_size) if self.unfold else patchify(x_BPD, self.patch_size)


def _projection(input_size: int, output_size: int, always: bool) -> nn.Module:
    if input_size == output_size and not always:
        return nn.Identity()
    return nn.Linear(input_size, output_size, bias=False)


def _tail(x_BHPD: Tensor, start: int) -> Tensor:
    """Positions from `start` on; copied where a view would keep far more alive than it shows."""
    tail = x_BHPD[:, :, start:]
    return tail.clone() if start > tail.shape[2] else tail
