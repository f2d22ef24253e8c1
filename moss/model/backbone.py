"""The shared decoder: transformers' Qwen3Model, configured from our settings.

Its state-dict names equal the published ones, and PEFT, FSDP plans and kernels written for it work here.
"""

from transformers import Qwen3Config, Qwen3Model

from moss.config.model import ModelConfig
from moss.model.attention import PACKED_ATTENTION


def backbone_config(config: ModelConfig) -> Qwen3Config:
    """The transformers configuration of a model's backbone."""
    backbone = Qwen3Config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_positions,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        initializer_range=config.initializer_range,
        tie_word_embeddings=False,
        attention_dropout=0.0,
        use_cache=False,
        # The published text tables have no padding row: row `pad` is trained like any other.
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    backbone._attn_implementation = PACKED_ATTENTION
    return backbone


def build_backbone(config: ModelConfig) -> Qwen3Model:
    """A freshly initialised backbone (normal weights of `initializer_range`, unit norms)."""
    return Qwen3Model(backbone_config(config))
