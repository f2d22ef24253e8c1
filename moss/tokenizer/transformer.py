"""Causal sliding-window transformer stages and the patch operators around them.

Everything here is (batch, position, feature). A stage can be run over a whole sequence, or chunk by chunk with a
`StageState`: both give the same result, since keys and values are cached before any of them is dropped.
Source: MOSS-Audio-Tokenizer modeling_moss_audio_tokenizer.py @56df9ee.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moss.config.tokenizer import TransformerStage

SMALLEST_BLOCK = 64


@dataclass(slots=True)
class StageState:
    """What one stage remembers of a stream: the position it stands at, and each layer's recent keys and values."""

    position: int = 0
    keys: list[Tensor] = field(default_factory=list)
    """Per layer (B, H, <= context - 1, Dh), already rotated."""
    values: list[Tensor] = field(default_factory=list)


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


def rotary_angles(start: int, count: int, head_size: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine (P, Dh / 2) of positions start .. start + count - 1.

    The angles are float64: in float32 they drift audibly after hours of positions.
    """
    exponents = torch.arange(0, head_size, 2, dtype=torch.float64, device=device) / head_size
    positions = torch.arange(start, start + count, dtype=torch.float64, device=device)
    angles = positions[:, None] * theta**-exponents
    return angles.cos().float(), angles.sin().float()


def rotate(x_BHPD: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate adjacent feature pairs (2i, 2i + 1) in float32; shape (B, H, P, Dh) in and out."""
    pairs = x_BHPD.float().unflatten(-1, (-1, 2))
    even, odd = pairs.unbind(-1)
    return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), -1).flatten(-2).type_as(x_BHPD)


def windowed_attention(
    query: Tensor, keys: Tensor, values: Tensor, context: int, block_size: int | None = None
) -> Tensor:
    """Attention in which position p sees exactly the positions (p - context, p].

    Queries are handled in blocks against the keys that any of them can see, so no P x P mask exists.

    Args:
        query: (B, H, P, Dh), the last P positions of the sequence.
        keys: (B, H, past + P, Dh).
        values: (B, H, past + P, Dh).
        context: Window in positions, the own one included.
        block_size: Queries per block; by default a quarter of the window.

    Returns:
        (B, H, P, Dh).
    """
    positions, total = query.shape[2], keys.shape[2]
    past = total - positions
    if past == 0 and positions <= context:
        return F.scaled_dot_product_attention(query, keys, values, is_causal=True)
    block = block_size or max(context // 4, SMALLEST_BLOCK)
    outputs = []
    for start in range(0, positions, block):
        stop = min(start + block, positions)
        first_key = max(0, past + start - context + 1)
        last_key = past + stop
        at = torch.arange(past + start, last_key, device=query.device)[:, None]
        sees = torch.arange(first_key, last_key, device=query.device)[None, :]
        mask = (sees <= at) & (sees > at - context)
        outputs.append(
            F.scaled_dot_product_attention(
                query[:, :, start:stop], keys[:, :, first_key:last_key], values[:, :, first_key:last_key], mask
            )
        )
    return torch.cat(outputs, 2)


class LayerScale(nn.Module):
    """A learnt factor per feature."""

    def __init__(self, width: int, init: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), init))

    def forward(self, x: Tensor) -> Tensor:
        """Shape in = shape out."""
        return x * self.scale


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
        query, keys, values = fused.permute(2, 0, 3, 1, 4)
        query, keys = rotate(query, *rotation), rotate(keys, *rotation)
        if state is not None:
            if layer < len(state.keys):
                keys = torch.cat((state.keys[layer], keys), 2)
                values = torch.cat((state.values[layer], values), 2)
            kept = max(0, keys.shape[2] - (context - 1))
            # Narrowed only after the window was joined: a chunk's first query needs the oldest cached key.
            _store(state.keys, layer, keys[:, :, kept:])
            _store(state.values, layer, values[:, :, kept:])
        attended = windowed_attention(query, keys, values, context)
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
        x_BPD = x_BPD + self.layer_scale_1(attended)
        return x_BPD + self.layer_scale_2(self.linear2(F.gelu(self.linear1(self.norm2(x_BPD)))))


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
        start = 0 if state is None else state.position
        rotation = rotary_angles(start, x_BPD.shape[1], self.head_size, self.rope_theta, x_BPD.device)
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


def _store(tensors: list[Tensor], layer: int, value: Tensor) -> None:
    if layer < len(tensors):
        tensors[layer] = value
    else:
        tensors.append(value)
