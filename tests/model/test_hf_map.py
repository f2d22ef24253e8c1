"""A published config.json becomes our settings, or says which field is missing."""

from typing import Any

import pytest

from moss.errors import CheckpointError
from moss.model.hf_map import delay_config

LANGUAGE: dict[str, Any] = {
    "vocab_size": 155_648,
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 12_288,
}


def test_fields_and_defaults() -> None:
    published = {"language_config": LANGUAGE | {"rope_theta": 5e5}, "n_vq": 16, "pad_token_id": 7}
    config = delay_config(published)
    assert (config.num_layers, config.num_codebooks, config.pad_token_id, config.rope_theta) == (36, 16, 7, 5e5)
    assert (config.head_dim, config.max_positions, config.codebook_size) == (128, 32_768, 1024)
    nested = {"language_config": LANGUAGE | {"rope_parameters": {"rope_theta": 3e5}}}
    assert delay_config(nested).rope_theta == 3e5


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ({"language_config": LANGUAGE, "local_num_layers": 4}, "this is a MossTTSLocal checkpoint, not MossTTSDelay"),
        ({"model_type": "qwen3"}, "config.json has no language_config: not a MossTTSDelay checkpoint"),
        (
            {"language_config": {k: v for k, v in LANGUAGE.items() if k != "num_hidden_layers"}},
            r"config\.json: language_config\.num_hidden_layers is missing",
        ),
    ],
)
def test_another_architecture(published: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        delay_config(published)
