"""Useful floating-point work of a training step, so that speed can be read against what the device could do."""

from collections.abc import Sequence

from moss.config.model import ModelConfig


def backbone_parameters(config: ModelConfig) -> int:
    """Parameters of the decoder blocks' matrices (norms and embeddings do no matrix work)."""
    attention = config.hidden_size * config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    return config.num_layers * (attention + 3 * config.hidden_size * config.intermediate_size)


def delay_training_flops(config: ModelConfig, document_lengths: Sequence[int], counts: Sequence[int]) -> float:
    """Forward and backward work that the labels of one batch require.

    Prompt positions earn their backbone pass, but no head: padding and logits without a label earn nothing.

    Args:
        config: Geometry.
        document_lengths: Positions of each document; attention is causal inside them.
        counts: Targets of each channel, text first.
    """
    positions = sum(document_lengths)
    body = 6.0 * backbone_parameters(config) * positions
    attention = 6.0 * config.num_layers * config.num_heads * config.head_dim * sum(n * n for n in document_lengths)
    head_rows = config.vocab_size * counts[0] + config.codebook_size * sum(counts[1:])
    return body + attention + 6.0 * config.hidden_size * head_rows
