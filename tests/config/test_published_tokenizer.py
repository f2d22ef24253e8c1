"""config.json of published tokenizers, both generations, there and back."""

import copy
import json
from typing import Any

import pytest

from moss.config.published_tokenizer import (
    Generation,
    config_from_published,
    generation_of,
    published_config,
    unfit_for,
)
from moss.config.schema import build, to_plain
from moss.config.tokenizer import CatConfig, ComputeDtype, TransformerStage
from moss.errors import ConfigError


def stage(inputs: int, outputs: int, hidden: int, layers: int, **more: Any) -> dict[str, Any]:
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
        **more,
    }


def patch(size: int) -> dict[str, Any]:
    return {"module_type": "PatchedPretransform", "patch_size": size}


def v1() -> dict[str, Any]:
    top, low = (768, 384, 768, 12), (1280, 768, 1280, 32)
    encoder = [patch(240), stage(240, *top[1:]), patch(2), stage(*top), patch(2), stage(768, 640, 768, 12)]
    encoder += [patch(2), stage(*low)]
    decoder = [stage(768, 1280, *low[2:]), patch(2), stage(640, 768, 768, 12), patch(2), stage(384, 768, 768, 12)]
    decoder += [patch(2), stage(384, 240, 768, 12), patch(240)]
    return {
        "model_type": "speech_tokenizer",
        "version": "4.26.1.a",
        "code_dim": 768,
        "sampling_rate": 24_000,
        "sample_rate": 24_000,
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


def v2() -> dict[str, Any]:
    """The 48 kHz form: its decoder is told reversed, and its windows differ."""
    encoder = [patch(240), stage(240, 384, 768, 12, context_duration=1.0)]
    for context_s in (2.0, 4.0, 8.0):
        encoder += [patch(2), stage(768, 384, 768, 12, context_duration=context_s)]
    encoder += [patch(2), stage(768, 640, 768, 12), patch(2), stage(1280, 768, 1280, 32, context_duration=10.0)]
    return v1() | {
        "sampling_rate": None,
        "sample_rate": 48_000,
        "downsample_rate": 3840,
        "encoder_kwargs": encoder,
        "decoder_kwargs": None,
        "reversed_decoder_kwargs": [{"context_duration": 10.0, **entry} for entry in encoder],
        "channels_numbers": 2,
        "enable_channel_interleave": True,
        "attention_implementation": "flash_attention_2",
        "compute_dtype": "bf16",
        "codec_weight_dtype": "fp32",
    }


def refusal(values: Any, keys: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        config_from_published(values, keys)
    return str(caught.value)


def test_v1_is_our_defaults() -> None:
    config = config_from_published(v1())
    assert config.geometry() == CatConfig().geometry()
    assert config.num_audio_channels == 1
    assert config.compute_dtype is ComputeDtype.fp32
    assert generation_of(v1()) is Generation.v1


def test_v2_is_the_preset(preset: Any) -> None:
    config = config_from_published(v2())
    assert generation_of(v2()) is Generation.v2
    assert config.geometry() == preset("cat_v2").geometry()
    assert config.compute_dtype is ComputeDtype.bf16
    windows = [stage.context_s for stage in config.encoder if isinstance(stage, TransformerStage)]
    assert windows == [1, 2, 4, 8, 10, 10], "a stage without a window of its own takes the common one"
    assert config.decoder_stages()[0].input_size == 768


def test_a_decoder_of_v2_leaves_open_the_shortest_window_of_the_encoder() -> None:
    values = v2()
    values["reversed_decoder_kwargs"] = copy.deepcopy(values["encoder_kwargs"])
    stages = [stage for stage in config_from_published(values).decoder_stages() if isinstance(stage, TransformerStage)]
    assert [stage.context_s for stage in stages] == [10, 1, 8, 4, 2, 1]


@pytest.fixture
def preset() -> Any:
    from moss.config.load_tokenizer import load_tokenizer_config

    return load_tokenizer_config


@pytest.mark.parametrize("name", ["cat_full", "cat_v2", "cat_nano"])
def test_presets_survive_the_published_form(preset: Any, name: str) -> None:
    config = preset(name)
    generation = Generation.v1 if name == "cat_full" else Generation.v2
    values = json.loads(json.dumps(published_config(config, generation)))
    assert generation_of(values) is generation
    again = config_from_published(values)
    assert again.geometry() == config.geometry()
    assert again.compute_dtype is config.compute_dtype
    assert unfit_for(config, generation) == []
    assert (unfit_for(config, Generation.v1) == []) is (name == "cat_full")


def test_names_of_tensors_show_which_projections_exist() -> None:
    values = v1()
    values["encoder_kwargs"][3] |= {"input_dimension": 768, "output_dimension": 768, "d_model": 768}
    values["encoder_kwargs"][5]["input_dimension"] = 1536
    assert not config_from_published(values).encoder[3].has_input_projection
    keys = ("encoder.3.input_proj.weight", "encoder.3.output_proj.weight")
    assert config_from_published(values, keys).encoder[3].has_input_projection
    assert not config_from_published(values, ("encoder.1.input_proj.weight",)).encoder[3].has_input_projection
    values |= {"number_channels": 1}
    assert config_from_published(values).encoder[3].has_input_projection
    assert not config_from_published(values, ("encoder.1.input_proj.weight",)).encoder[3].has_input_projection


def test_a_missing_decoder_is_not_guessed() -> None:
    values = v1()
    del values["decoder_kwargs"]
    assert "decoder_kwargs: is missing, and so is reversed_decoder_kwargs; the published class' default" in refusal(
        values
    )
    values["reversed_decoder_kwargs"] = values["encoder_kwargs"]
    assert config_from_published(values).geometry() == CatConfig().geometry()


def test_the_class_default_decoder_is_refused() -> None:
    """It has five transformers and unfolds a frame into twice as many samples."""
    values = v1()
    values["decoder_kwargs"][6:6] = [stage(384, 768, 768, 12), patch(2)]
    text = refusal(values)
    assert "decoder: the patches multiply to 3840, expected samples_per_frame 1920" in text


def test_what_no_published_weights_use_is_all_listed() -> None:
    values = v2() | {"quantizer_type": "rvq", "attention_implementation": "eager", "compute_dtype": "int8"}
    values |= {"enable_channel_interleave": False, "codec_load_dtype": "int4", "sampling_rate": 24_000}
    values["encoder_kwargs"][1]["gating"] = "silu"
    values["encoder_kwargs"][3]["layer_scale"] = None
    values["reversed_decoder_kwargs"][1]["norm"] = "rms_norm"
    values["reversed_decoder_kwargs"][0] = {"module_type": "Conv"}
    del values["downsample_rate"], values["quantizer_kwargs"]["rvq_dim"], values["encoder_kwargs"][3]["d_model"]
    text = refusal(values)
    for message in (
        "quantizer_type: expected one of rlfq, random_prefix_rlfq, got 'rvq'",
        "attention_implementation: expected one of sdpa, flash_attention_2, got 'eager'",
        "enable_channel_interleave: 2 audio channels are only supported as one interleaved stream, got false",
        "codec_load_dtype: expected one of float32, bfloat16, float16, fp32, bf16, fp16, got 'int4'",
        "sample_rate: 48000 contradicts sampling_rate=24000, which means the same",
        "encoder_kwargs[1].gating: only 'none' is supported, got 'silu'",
        "encoder_kwargs[3].layer_scale: blocks without it are not supported, got None",
        "encoder_kwargs[3].d_model: is missing",
        "reversed_decoder_kwargs[1].norm: only 'layer_norm' is supported, got 'rms_norm'",
        "reversed_decoder_kwargs[0].module_type: expected Transformer or PatchedPretransform, got",
        "downsample_rate: is missing",
        "quantizer_kwargs.rvq_dim: is missing",
    ):
        assert message in text, message


def test_values_of_the_wrong_kind() -> None:
    assert "compute_dtype: expected one of fp32, bf16, fp16, got 'int8'" in refusal(v2() | {"compute_dtype": "int8"})
    assert "num_audio_channels: expected 1 or 2, got 6" in refusal(v2() | {"channels_numbers": 6})
    assert "expected an object of fields, got list" in refusal([])
    text = refusal(v1() | {"encoder_kwargs": 3, "quantizer_kwargs": None})
    assert "encoder_kwargs: expected the list of the encoder's modules, got 3" in text
    assert "quantizer_kwargs: expected an object of fields, got None" in text


def test_windows_that_v2_rounds_are_refused() -> None:
    """0.29 s at 100 Hz are 28.999... positions: 28 for v1 and for us, 29 for v2."""
    values = v2()
    values["encoder_kwargs"][5]["context_duration"] = 0.29
    assert "encoder[5].context_s: 0.29 s are 29 positions at 100 Hz, which v2 rounds up" in refusal(values)
    values["encoder_kwargs"][5]["context_duration"] = 0.3
    assert config_from_published(values).encoder[5].context_s == 0.3
    mono = config_from_published(v1() | {"causal_transformer_context_duration": 0.29})
    assert "encoder[1].context_s" in unfit_for(mono, Generation.v2)[0]
    assert unfit_for(mono, Generation.v1) == []


def test_v1_has_one_window() -> None:
    config = config_from_published(v1())
    plain = to_plain(config)
    plain["encoder"][1]["context_s"] = 4.0
    assert unfit_for(build(CatConfig, plain), Generation.v1) == [
        "context_s: v1 has one window for all stages, got 4.0, 10.0"
    ]


def test_unknown_fields_of_a_stage_are_told(caplog: pytest.LogCaptureFixture) -> None:
    values = v1()
    values["encoder_kwargs"][1]["qk_norm"] = True
    config_from_published(values)
    assert "encoder_kwargs[1]: qk_norm: nothing is known about it, it is ignored" in caplog.text
