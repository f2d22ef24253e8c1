"""Published names and settings, and errors that list every key."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from moss.config.tokenizer import CatConfig
from moss.errors import CheckpointError, ConfigError
from moss.tokenizer.cat import CatModel
from moss.tokenizer.hf_map import canonical_key, config_from_published, key_48khz, load_state, read_weights
from tests.tokenizer.conftest import small_model

STEM = "encoder.1.transformer.layers.0."


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        (STEM + "self_attn.in_proj_weight", STEM + "self_attn.in_projs.0.weight"),
        (STEM + "self_attn.in_proj.weight", STEM + "self_attn.in_projs.0.weight"),
        (STEM + "self_attn.out_proj.weight", STEM + "self_attn.out_projs.0.weight"),
        (STEM + "self_attn.in_projs.0.weight", STEM + "self_attn.in_projs.0.weight"),
        (STEM + "ffn.0.weight", STEM + "linear1.weight"),
        (STEM + "ffn.2.weight", STEM + "linear2.weight"),
        ("quantizer.input_proj.weight_g", "quantizer.input_proj.parametrizations.weight.original0"),
        ("quantizer.quantizers.3.in_proj.weight_v", "quantizer.quantizers.3.in_proj.parametrizations.weight.original1"),
        ("quantizer.quantizers.3.in_proj.bias", "quantizer.quantizers.3.in_proj.bias"),
        ("encoder.1.input_proj.weight", "encoder.1.input_proj.weight"),
    ],
)
def test_names_of_every_generation(published: str, ours: str) -> None:
    assert canonical_key(published) == ours


def legacy_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for key, value in state.items():
        key = key_48khz(key).replace(".self_attn.in_proj.weight", ".self_attn.in_proj_weight")
        key = key.replace("parametrizations.weight.original0", "weight_g")
        renamed[key.replace("parametrizations.weight.original1", "weight_v")] = value
    return renamed


def test_legacy_names_load_the_same_weights(model: CatModel) -> None:
    state = model.state_dict()
    legacy = legacy_names(state)
    assert not set(legacy) & {key for key in state if "self_attn" in key or "original" in key}
    other = small_model(1)
    load_state(other, legacy, "legacy")
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())


def test_wrong_keys_are_all_listed(model: CatModel) -> None:
    state = dict(model.state_dict())
    bias = state.pop("quantizer.input_proj.bias")
    state["encoder.9.typo"] = bias
    state["quantizer.output_proj.bias"] = torch.zeros(99)
    state[STEM + "ffn.0.weight"] = state[STEM + "linear1.weight"]
    with pytest.raises(CheckpointError) as caught:
        load_state(model, state, "weights.safetensors")
    text = str(caught.value)
    assert text.startswith("weights.safetensors: not the weights of this tokenizer")
    assert "1 missing:\n    quantizer.input_proj.bias" in text
    assert "1 unknown:\n    encoder.9.typo" in text
    assert "1 of another shape:\n    quantizer.output_proj.bias expected (12,), got (99,)" in text
    assert f"1 given twice:\n    {STEM}linear1.weight (again as {STEM}ffn.0.weight)" in text


def test_long_lists_say_how_many_more(model: CatModel) -> None:
    with pytest.raises(CheckpointError, match=r"and \d+ more"):
        load_state(model, {}, "empty")


def test_sharded_folder(model: CatModel, tmp_path: Path) -> None:
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    names = sorted(state)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in halves.items():
        save_file({key: state[key] for key in keys}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: file for file, keys in halves.items() for key in keys}}))
    assert set(read_weights(tmp_path)) == set(state)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"b.safetensors: no such file"):
        read_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": {"x": "../b.safetensors"}}))
    with pytest.raises(CheckpointError, match="shards must lie beside the index"):
        read_weights(tmp_path)
    index.write_text("{")
    with pytest.raises(CheckpointError, match="no readable weight_map"):
        read_weights(tmp_path)


def test_file_that_is_no_safetensors(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"not a header")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_weights(tmp_path / "x.safetensors")


def published_config() -> dict[str, Any]:
    def stage(inputs: int, outputs: int, hidden: int, layers: int) -> dict[str, Any]:
        return {
            "module_type": "Transformer",
            "input_dimension": inputs,
            "output_dimension": outputs,
            "d_model": hidden,
            "num_heads": hidden // 64,
            "num_layers": layers,
            "dim_feedforward": 4 * hidden,
            "causal": True,
            "norm": "layer_norm",
            "positional_embedding": "rope",
            "max_period": 10000,
            "gating": "none",
            "layer_scale": 0.01,
            "conv_layout": True,
        }

    def patch(size: int) -> dict[str, Any]:
        return {"module_type": "PatchedPretransform", "patch_size": size}

    top, low = (768, 384, 768, 12), (1280, 768, 1280, 32)
    encoder = [patch(240), stage(240, *top[1:]), patch(2), stage(*top), patch(2), stage(768, 640, 768, 12)]
    encoder += [patch(2), stage(*low)]
    decoder = [stage(768, 1280, *low[2:]), patch(2), stage(640, 768, 768, 12), patch(2), stage(384, 768, 768, 12)]
    decoder += [patch(2), stage(384, 240, 768, 12), patch(240)]
    return {
        "model_type": "speech_tokenizer",
        "sampling_rate": 24_000,
        "downsample_rate": 1920,
        "causal_transformer_context_duration": 10.0,
        "encoder_kwargs": encoder,
        "decoder_kwargs": decoder,
        "quantizer_type": "rlfq",
        "quantizer_kwargs": {
            "input_dim": 768,
            "rvq_dim": 512,
            "output_dim": 768,
            "num_quantizers": 32,
            "codebook_size": 1024,
            "codebook_dim": 8,
            "quantizer_type": "rlfq",
        },
    }


def test_published_settings_are_our_defaults() -> None:
    config = config_from_published(published_config())
    assert config.encoder == CatConfig().encoder
    assert config.decoder_stages() == CatConfig().decoder_stages()
    assert config.quantizer == CatConfig().quantizer


def test_unsupported_operators_are_all_listed() -> None:
    values = published_config()
    values["quantizer_type"] = "rvq"
    values["encoder_kwargs"][1]["gating"] = "silu"
    values["decoder_kwargs"][0]["norm"] = "rms_norm"
    values["decoder_kwargs"][1]["module_type"] = "Conv"
    with pytest.raises(ConfigError) as caught:
        config_from_published(values)
    text = str(caught.value)
    assert "quantizer_type: expected one of rlfq, random_prefix_rlfq, got 'rvq'" in text
    assert "encoder_kwargs[1].gating: only 'none' is supported, got 'silu'" in text
    assert "decoder_kwargs[0].norm: only 'layer_norm' is supported, got 'rms_norm'" in text
    assert "decoder_kwargs[1].module_type: expected Transformer or PatchedPretransform" in text
