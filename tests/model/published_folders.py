"""Tiny published checkpoint folders with random weights, one for each layout: what a download looks like."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from moss.model.hf_map import model_config
from tests.model.test_meta_presets import published_shapes, tied_shapes

_LANGUAGE: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
}
_IDS = {"pad_token_id": 30, "im_start_token_id": 31, "im_end_token_id": 32, "audio_start_token_id": 33}
_IDS |= {"audio_end_token_id": 34, "audio_user_slot_token_id": 35}
_SLOTS = {"audio_assistant_gen_slot_token_id": 36, "audio_assistant_delay_slot_token_id": 37}
_DELAY = {"model_type": "moss_tts_delay", "n_vq": 3, "audio_vocab_size": 10, "audio_pad_code": 10, **_IDS, **_SLOTS}
_GPT2 = {"n_layer": 1, "n_head": 4, "n_inner": 40, "n_embd": 32, "activation_function": "silu"}
CONFIGS: dict[str, dict[str, Any]] = {
    "delay": _DELAY | {"language_config": _LANGUAGE, "vocab_size": 40, "hidden_size": 32},
    "local": _DELAY
    | {"language_config": _LANGUAGE, "local_hidden_size": 24, "local_num_layers": 2}
    | {"local_ffn_hidden_size": 40, "additional_mlp_ffn_hidden_size": 20},
    "local_v15": {"model_type": "moss_tts_local", "n_vq": 3, "audio_vocab_size": 10, **_IDS}
    | {"audio_assistant_slot_token_id": 36, "qwen3_config": _LANGUAGE, "gpt2_config": _GPT2}
    | {"local_text_head_mode": "binary", "audio_codebook_sizes": [10, 10, 10]},
    "realtime": {"model_type": "moss_tts_realtime", "rvq": 3, "audio_vocab_size": 13, "audio_pad_token": 10}
    | {"reference_audio_pad": 35, "text_pad": 36, "im_start_token_id": 31, "im_end_token_id": 32}
    | {"language_config": _LANGUAGE | {"pad_token_id": 30}}
    | {"local_config": _LANGUAGE | {"audio_vocab_size": 13, "rvq": 3, "model_type": "depth"}},
}
FILES: dict[str, bytes] = {
    "tokenizer.json": b'{"version": "1.0", "text": "\xc3\xa9"}\n',
    "tokenizer_config.json": b'{"chat_template": "..."}',
    "README.md": b"# A model\r\n",
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "processing_moss_tts.py": b"raise SystemExit('a checkpoint was executed')\n",
    "mossttsrealtime/__init__.py": b"",
    "assets/audio/clip.wav": bytes(range(256)),
}
"""What lies beside config.json and the weights: any bytes, in any folder."""


def random_weights(
    config: Mapping[str, Any], *, tied: bool = True, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Tensor]:
    """Random tensors for a config.json, in no particular order of names."""
    settings = model_config(config)
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(shape, generator=generator).to(dtype) for name, shape in published_shapes(settings).items()
    }
    if config["model_type"] == "moss_tts_local":
        for name in tied_shapes(settings):
            if not tied:
                del state[name]
            elif name == "text_lm_head.weight":
                state[name] = state["transformer.embed_tokens.weight"].clone()
            else:
                state[name] = state[name.replace("audio_lm_heads", "audio_embeddings")].clone()
    return state


def write_published(
    folder: Path, kind: str, *, shards: int = 1, tied: bool = True, dtype: torch.dtype = torch.bfloat16
) -> Path:
    """A folder as published: config.json, weights in `shards` files, tokenizer and other files."""
    folder.mkdir(parents=True)
    config = CONFIGS[kind]
    (folder / "config.json").write_text(json.dumps(config, indent=4, sort_keys=True))
    state = random_weights(config, tied=tied, dtype=dtype)
    names = list(state)
    if shards == 1:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        weight_map = {}
        for i in range(shards):
            file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            part = {name: state[name] for name in names[i::shards]}
            save_file(part, folder / file, metadata={"format": "pt", "shard": str(i)})
            weight_map |= dict.fromkeys(part, file)
        total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        index = {"metadata": {"total_size": total, "total_parameters": 1}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
