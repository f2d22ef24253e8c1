"""Attention for packed documents, registered with transformers' attention interface under `PACKED_ATTENTION`.

A packed row holds several documents one after the other; a position sees only its own document. No mask of
positions x positions is ever built: CUDA takes the variable-length flash kernel, the CPU one causal SDPA per
document. Without `document_lengths` (generation, padded batches) transformers' own SDPA path runs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED_ATTENTION = "moss_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    document_lengths: Sequence[int] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each document.

    Args:
        module: The attention layer; only its head grouping is read.
        query: Shape (1, heads, positions, head_dim); key and value with their own number of heads.
        key: See query.
        value: See query.
        attention_mask: Unused with documents, passed on without.
        document_lengths: Positions of each document, in order; their sum is the number of positions.
        kwargs: `scaling`, `dropout`, ... of transformers' interface.

    Returns:
        The attended values, shape (1, positions, heads, head_dim), and None for the weights.
    """
    if document_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    assert query.shape[0] == 1, "a packed row is a batch of one"
    assert sum(document_lengths) == query.shape[2], "documents must fill the packed row"
    scaling = kwargs.get("scaling")
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        return _varlen(query, key, value, document_lengths, scaling), None
    grouped = key.shape[1] != query.shape[1]
    outputs = [
        functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        for q, k, v in zip(
            query.split(list(document_lengths), dim=2),
            key.split(list(document_lengths), dim=2),
            value.split(list(document_lengths), dim=2),
            strict=True,
        )
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _varlen(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scaling: float | None) -> Tensor:
    """The flash kernel for documents of unequal length (CUDA, half precision)."""
    from torch.nn.attention.varlen import varlen_attn

    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).to(query.device, torch.int32)
    longest = max(lengths)
    flat = [tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value)]
    attended = varlen_attn(*flat, bounds, bounds, longest, longest, scale=scaling, window_size=(-1, 0))
    assert isinstance(attended, Tensor)
    return attended.unsqueeze(0)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
