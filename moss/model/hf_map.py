"""Published checkpoint <-> ours, one table per architecture.

For MossTTSDelay the parameter names are the same; only the configuration is spelt differently.
"""

from collections.abc import Mapping
from typing import Any

from moss.config.model import DelayModelConfig
from moss.errors import CheckpointError

_BACKBONE_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "rms_norm_eps": "rms_norm_eps",
    "max_positions": "max_position_embeddings",
}

_WITH_DEFAULT = {"head_dim", "rms_norm_eps", "max_positions"}
"""Fields that a language_config may leave out; our defaults are Qwen3Config's."""

_DELAY_FIELDS = {
    "num_codebooks": "n_vq",
    "codebook_size": "audio_vocab_size",
    "pad_token_id": "pad_token_id",
    "im_start_token_id": "im_start_token_id",
    "im_end_token_id": "im_end_token_id",
    "audio_start_token_id": "audio_start_token_id",
    "audio_end_token_id": "audio_end_token_id",
    "audio_user_slot_token_id": "audio_user_slot_token_id",
    "audio_assistant_gen_slot_token_id": "audio_assistant_gen_slot_token_id",
    "audio_assistant_delay_slot_token_id": "audio_assistant_delay_slot_token_id",
}


def delay_config(published: Mapping[str, Any]) -> DelayModelConfig:
    """Read the config.json of a published MossTTSDelay checkpoint.

    Args:
        published: The parsed file; `language_config` describes the backbone.

    Raises:
        CheckpointError: A required field is missing, or the folder holds another architecture.
    """
    if "local_num_layers" in published:
        raise CheckpointError("config.json has local_num_layers: this is a MossTTSLocal checkpoint, not MossTTSDelay")
    language = published.get("language_config")
    if not isinstance(language, Mapping):
        raise CheckpointError("config.json has no language_config: not a MossTTSDelay checkpoint")
    values: dict[str, Any] = {}
    for ours, theirs in _BACKBONE_FIELDS.items():
        if theirs not in language:
            if ours in _WITH_DEFAULT:
                continue
            raise CheckpointError(f"config.json: language_config.{theirs} is missing")
        values[ours] = language[theirs]
    rope = language.get("rope_parameters") or {}
    values["rope_theta"] = float(rope.get("rope_theta", language.get("rope_theta", 1_000_000.0)))
    values |= {ours: published[theirs] for ours, theirs in _DELAY_FIELDS.items() if theirs in published}
    return DelayModelConfig(**values)
