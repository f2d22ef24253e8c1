"""Useful floating-point work of a training step, so that speed can be read against what the device could do.

Counted are the matrix products that the labels require: padding and logits without a label earn nothing. A depth
transformer earns one position per label that one of its positions predicts; its own attention over the few positions
of a frame is left out.
"""

from collections.abc import Sequence

from moss.config.model import LocalModelConfig, LocalV15ModelConfig, ModelConfig, RealtimeModelConfig, StopHead


def backbone_parameters(config: ModelConfig) -> int:
    """Parameters of the decoder blocks' matrices (norms and embeddings do no matrix work)."""
    heads = (config.num_heads, config.num_kv_heads, config.head_dim)
    return config.num_layers * _qwen_block(config.hidden_size, *heads, config.intermediate_size)


def depth_parameters(config: ModelConfig) -> int:
    """Parameters that one position of the depth transformer passes through, the projections around it included.

    0 for an architecture without one.
    """
    width = config.hidden_size
    if isinstance(config, LocalModelConfig):
        heads = (config.num_heads, config.num_kv_heads, config.head_dim)
        block = _qwen_block(config.depth_hidden_size, *heads, config.depth_intermediate_size)
        into = config.depth_mlp_size * (2 * width + config.depth_hidden_size)
        out_of = config.depth_mlp_size * (2 * config.depth_hidden_size + width)
        return config.depth_num_layers * block + into + out_of
    if isinstance(config, LocalV15ModelConfig):
        return config.depth_num_layers * (4 * width * width + 2 * width * config.depth_intermediate_size)
    if isinstance(config, RealtimeModelConfig):
        heads = (config.depth_num_heads, config.depth_num_kv_heads, config.depth_head_dim)
        return config.depth_num_layers * _qwen_block(width, *heads, config.depth_intermediate_size)
    return 0


def training_flops(
    config: ModelConfig,
    document_lengths: Sequence[int],
    counts: Sequence[int],
    *,
    depth_frac: float = 1.0,
    frozen: bool = False,
) -> float:
    """Forward and backward work that the labels of one batch require.

    Args:
        config: Geometry.
        document_lengths: Positions of each document; attention is causal inside them.
        counts: Targets of each channel, text first.
        depth_frac: Share of the frames whose codes go through the depth transformer.
        frozen: The matrices get no gradient of their own (LoRA), which saves a third of their work.
    """
    factor = 4.0 if frozen else 6.0
    body = factor * backbone_parameters(config) * sum(document_lengths)
    attention = 6.0 * config.num_layers * config.num_heads * config.head_dim * sum(n * n for n in document_lengths)
    computed = [counts[0], *(depth_frac * count for count in counts[1:])] if depth_parameters(config) else list(counts)
    depth = factor * depth_parameters(config) * _depth_positions(config, computed)
    text_rows, code_rows = _head_rows(config)
    heads = factor * config.hidden_size * (text_rows * computed[0] + code_rows * sum(computed[1:]))
    return body + attention + depth + heads


def _qwen_block(width: int, num_heads: int, num_kv_heads: int, head_dim: int, intermediate_size: int) -> int:
    return width * head_dim * (2 * num_heads + 2 * num_kv_heads) + 3 * width * intermediate_size


def _depth_positions(config: ModelConfig, counts: Sequence[float]) -> float:
    """Positions of the depth transformer that predict something."""
    if isinstance(config, LocalV15ModelConfig):
        # Position 0 predicts the stop decision and code 0 together, and every frame has a stop label.
        return counts[0] + sum(counts[2:])
    return sum(counts)


def _head_rows(config: ModelConfig) -> tuple[int, int]:
    """Ids that the text head and each codebook's head choose from."""
    if isinstance(config, LocalV15ModelConfig):
        return (2 if config.stop_head is StopHead.binary else config.vocab_size), config.codebook_size
    if isinstance(config, RealtimeModelConfig):
        return 0, config.eos_code + 1
    return config.vocab_size, config.codebook_size
