"""A published config.json becomes our settings and comes back, or says which field is missing."""

import copy
import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from moss.config.model import (
    DepthPosition,
    LocalV15ModelConfig,
    Member,
    RealtimeModelConfig,
    StopHead,
    Template,
)
from moss.config.schema import to_plain
from moss.errors import CheckpointError
from moss.model.build import build_model
from moss.model.hf_map import (
    architecture_of,
    delay_config,
    local_config,
    local_v15_config,
    model_config,
    published_config,
    read_config,
    realtime_config,
)
from tests.model.test_meta_presets import PUBLISHED, preset
from tests.parity.fixture_files import load_fixture

LANGUAGE: dict[str, Any] = {
    "vocab_size": 155_648,
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 12_288,
}
GPT2 = {"n_layer": 1, "n_head": 32, "n_inner": None, "activation_function": "silu"}
DEPTH = {"local_hidden_size": 1536, "local_ffn_hidden_size": 8960, "additional_mlp_ffn_hidden_size": 2048}
REALTIME_DEPTH = {
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 6144,
}
DELAY: dict[str, Any] = {"model_type": "moss_tts_delay", "n_vq": 32, "language_config": LANGUAGE}
LOCAL: dict[str, Any] = DELAY | DEPTH | {"local_num_layers": 4}
V15: dict[str, Any] = {"model_type": "moss_tts_local", "n_vq": 12, "qwen3_config": LANGUAGE, "gpt2_config": GPT2}
REALTIME: dict[str, Any] = {
    "model_type": "moss_tts_realtime",
    "language_config": LANGUAGE,
    "local_config": REALTIME_DEPTH,
    "rvq": 16,
    "audio_vocab_size": 1027,
}
_OTHER_ROOTS = (("local_v15", "qwen3_config"), ("realtime", "local_config"))
PUBLISHED_CONFIGS = {"delay": DELAY, "local": LOCAL, "local_v15": V15, "realtime": REALTIME}


def test_fields_and_defaults() -> None:
    published = {"language_config": LANGUAGE | {"rope_theta": 5e5}, "n_vq": 16, "pad_token_id": 7}
    config = delay_config(published)
    assert (config.num_layers, config.num_codebooks, config.pad_token_id, config.rope_theta) == (36, 16, 7, 5e5)
    assert (config.head_dim, config.max_positions, config.codebook_size) == (128, 32_768, 1024)
    nested = {"language_config": LANGUAGE | {"rope_parameters": {"rope_theta": 3e5}}, "n_vq": 16}
    assert delay_config(nested).rope_theta == 3e5


def test_architecture_by_model_type_and_depth() -> None:
    assert {name: architecture_of(published) for name, published in PUBLISHED_CONFIGS.items()} == {
        name: name for name in PUBLISHED_CONFIGS
    }
    with pytest.raises(
        CheckpointError,
        match="model_type 'qwen3' is no generator .*; expected one of moss_.*; choose a checkpoint",
    ):
        architecture_of({"model_type": "qwen3"})
    with pytest.raises(CheckpointError, match="model_type None is no generator"):
        architecture_of({"local_num_layers": 4})


def test_depth_settings() -> None:
    local = local_config(LOCAL)
    assert (local.depth_hidden_size, local.depth_num_layers, local.depth_intermediate_size) == (1536, 4, 8960)
    assert local.depth_mlp_size == 2048
    assert local.template is Template.moss_tts_local_v1
    v15 = local_v15_config(V15)
    assert v15.depth_intermediate_size == 4 * 4096, "GPT-2's own default"
    assert (v15.depth_position, v15.depth_rope_theta) == (DepthPosition.learned, 10_000.0)
    assert (v15.stop_head, v15.audio_start_token_id) == (StopHead.binary, 151_669)
    rope = GPT2 | {"position_embedding_type": "rope", "rope_base": 1e6, "n_inner": 9728, "layer_norm_epsilon": 1e-6}
    v15 = local_v15_config(V15 | {"gpt2_config": rope, "local_text_head_mode": "full-vocab"})
    assert (v15.depth_position, v15.depth_rope_theta, v15.depth_intermediate_size) == (DepthPosition.rope, 1e6, 9728)
    assert (v15.stop_head, v15.depth_layer_norm_eps) == (StopHead.full_vocab, 1e-6)
    both = V15 | {"audio_assistant_slot_token_id": 5, "audio_assistant_gen_slot_token_id": 6}
    assert local_v15_config(both).audio_assistant_slot_token_id == 6, "as the published class decides"
    assert local_v15_config(V15 | {"local_transformer_layers": 3}).depth_num_layers == 3
    realtime = realtime_config(REALTIME | {"rvq": 8, "audio_vocab_size": 259, "text_pad": 9})
    assert (realtime.num_codebooks, realtime.codebook_size, realtime.text_pad_token_id) == (8, 256, 9)
    assert (realtime.depth_num_kv_heads, realtime.depth_head_dim, realtime.member) == (8, 128, Member.realtime)
    without = {key: value for key, value in REALTIME.items() if key not in ("rvq", "audio_vocab_size")}
    assert (realtime_config(without).num_codebooks, realtime_config(without).codebook_size) == (16, 1024)


def test_member_and_template(caplog: pytest.LogCaptureFixture) -> None:
    dialogue = model_config(DELAY, member=Member.ttsd)
    assert (dialogue.member, dialogue.template) == (Member.ttsd, Template.moss_ttsd_v1)
    chosen = model_config(DELAY, member=Member.ttsd, template=Template.moss_tts_delay_v1)
    assert chosen.template is Template.moss_tts_delay_v1
    with caplog.at_level(logging.WARNING):
        plain = model_config(DELAY)
        assert not caplog.records
        model_config(DELAY | {"n_vq": 16}, member=Member.sound_effect)
        assert not caplog.records
        assert model_config(DELAY | {"n_vq": 16}).member is Member.tts
    assert (plain.member, plain.template) == (Member.tts, Template.moss_tts_delay_v1)
    assert "16 codebooks" in caplog.text
    assert "name another member (ttsd, voice_generator, sound_effect)" in caplog.text


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ({"language_config": LANGUAGE, "local_num_layers": 4}, "a MossTTSLocal checkpoint, not MossTTSDelay; read it"),
        ({"model_type": "qwen3"}, "no language_config: not a MossTTSDelay checkpoint; fetch it again, or"),
        (
            DELAY | {"language_config": {k: v for k, v in LANGUAGE.items() if k != "num_hidden_layers"}},
            r"config\.json: language_config\.num_hidden_layers is missing; fetch it again, or add what the weights",
        ),
    ],
)
def test_another_architecture(published: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        delay_config(published)


def without(published: Mapping[str, Any], path: str) -> dict[str, Any]:
    """A copy that lacks a field; with it, what the field stands in."""
    made = copy.deepcopy(dict(published))
    *parents, last = path.split(".")
    group = made
    for name in parents:
        group = group[name]
    del group[last]
    return made


@pytest.mark.parametrize(
    ("architecture", "field"),
    [
        ("delay", "n_vq"),
        ("delay", "language_config.hidden_size"),
        ("local", "local_hidden_size"),
        ("local", "additional_mlp_ffn_hidden_size"),
        ("local_v15", "qwen3_config.vocab_size"),
        ("local_v15", "gpt2_config.n_head"),
        ("realtime", "language_config.num_key_value_heads"),
        ("realtime", "local_config.num_attention_heads"),
    ],
)
def test_a_missing_field_is_named(architecture: str, field: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {field} is missing"):
        model_config(without(PUBLISHED_CONFIGS[architecture], field))


def test_all_missing_fields_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"local_config\.num_hidden_layers, .*intermediate_size are missing"):
        model_config(REALTIME | {"local_config": {}})
    with pytest.raises(CheckpointError, match="has no qwen3_config: not a MossTTSLocal checkpoint"):
        model_config(V15 | {"qwen3_config": None})


@pytest.mark.parametrize(
    ("published", "message"),
    [
        (DELAY | {"audio_pad_code": 0}, "audio_pad_code is 0; only 1024 is supported"),
        (DELAY | {"language_config": LANGUAGE | {"hidden_act": "gelu"}}, "hidden_act is 'gelu'; only 'silu'"),
        (DELAY | {"language_config": LANGUAGE | {"rope_parameters": {"rope_type": "yarn"}}}, "rope_type is 'yarn'"),
        *(
            (
                PUBLISHED_CONFIGS[name] | {root: PUBLISHED_CONFIGS[name][root] | {"rope_scaling": scaling}},
                rf"this program has; choose a checkpoint without these, or run it with its own .*\n  {root}\.{words}",
            )
            for name, root in (*((n, "language_config") for n in ("delay", "local", "realtime")), *_OTHER_ROOTS)
            for scaling, words in (
                ({"type": "yarn", "factor": 4.0}, r"rope_scaling\.type is 'yarn'; only 'default' or 'linear' is sup"),
                ({"rope_type": "dynamic"}, r"rope_scaling\.rope_type is 'dynamic'; only"),
                ({"type": "linear", "factor": 2.0}, r"rope_scaling\.factor is 2\.0; only 1 is supported"),
                (4.0, r"rope_scaling is 4\.0; only an object is supported"),
            )
        ),
        (V15 | {"audio_codebook_sizes": [1024, 512]}, r"audio_codebook_sizes is \[1024, 512\]"),
        (V15 | {"gpt2_config": GPT2 | {"n_embd": 768}}, r"gpt2_config\.n_embd is 768; only 4096"),
        (REALTIME | {"local_config": REALTIME_DEPTH | {"rvq": 12}}, r"local_config\.rvq is 12; only 16"),
        (REALTIME | {"audio_vocab_size": "many"}, "audio_vocab_size cannot be 'many'; fetch the file again"),
        (DELAY | {"n_vq": "many"}, "num_codebooks: expected a whole number, got 'many'"),
        (V15 | {"local_text_head_mode": "both"}, "stop_head: expected one of binary, full_vocab, got 'both'"),
        (V15 | {"gpt2_config": GPT2 | {"position_embedding_type": ["rope"]}}, "position_embedding_type cannot be"),
    ],
)
def test_a_network_that_we_do_not_have(published: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        model_config(published)


@pytest.mark.parametrize("scaling", [None, {"type": "default"}, {"rope_type": "linear", "factor": 1.0}])
def test_rotary_positions_that_change_nothing(scaling: dict[str, Any] | None) -> None:
    assert delay_config(DELAY | {"language_config": LANGUAGE | {"rope_scaling": scaling}}) == delay_config(DELAY)


def fixture_configs() -> dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]]:
    """config.json and tensor shapes of the published implementations' own tiny models."""
    local, v15 = load_fixture("ref_local.pt.gz"), load_fixture("ref_local_v15.pt.gz")
    small = local["small"]
    by_hand = {"language_config": small["lang"], **small["ids"], **small["local"], "model_type": "moss_tts_delay"}
    entries = {
        "delay": load_fixture("ref_delay.pt.gz")["small"],
        "local": local["gen"],
        "local_small": small | {"config": by_hand | {k: small[k] for k in ("n_vq", "audio_vocab_size")}},
        "binary": v15["binary"],
        "full_vocab": v15["full_vocab"] | {"state_dict": {}},
        "realtime": load_fixture("ref_realtime.pt.gz")["train"],
    }
    return {
        name: (entry["config"], {key: tuple(tensor.shape) for key, tensor in entry["state_dict"].items()})
        for name, entry in entries.items()
    }


def test_golden_configs_of_the_published_code_convert_build_and_come_back() -> None:
    for name, (published, shapes) in fixture_configs().items():
        config = model_config(published)
        with torch.device("meta"):
            built = build_model(config)
        if shapes:
            assert {key: tuple(tensor.shape) for key, tensor in built.state_dict().items()} == shapes, name
        assert published_config(config, published) == published, name
        scratch = published_config(config)
        assert model_config(json.loads(json.dumps(scratch))) == config, name


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_survive_an_export_without_an_original(name: str) -> None:
    config = preset(name)
    made = published_config(config)
    back = model_config(made, config.member, config.template)
    assert to_plain(back) | {"unverified": config.unverified} == to_plain(config)


def test_only_what_changed_is_changed() -> None:
    published = DELAY | {"something_new": [1], "vocab_size": 155_648, "torch_dtype": "bfloat16"}
    before = copy.deepcopy(published)
    longer = dataclasses.replace(model_config(published), max_positions=99, vocab_size=160_000)
    made = published_config(longer, published)
    assert published == before, "the original is not touched"
    language = LANGUAGE | {"max_position_embeddings": 99, "vocab_size": 160_000}
    assert made == published | {"language_config": language, "vocab_size": 160_000}
    sizes = V15 | {"audio_codebook_sizes": [1024] * 12, "audio_vocab_size": 1024}
    assert (
        published_config(dataclasses.replace(model_config(sizes), num_codebooks=3), sizes)["audio_codebook_sizes"]
        == [1024] * 3
    )
    with pytest.raises(CheckpointError, match="original is of architecture delay, the model local; name the folder"):
        published_config(model_config(LOCAL), DELAY)


def test_mirrors_and_constants_of_a_new_config() -> None:
    v15 = published_config(LocalV15ModelConfig(num_codebooks=3), sampling_rate_hz=24_000)
    assert v15["language_config"] == v15["qwen3_config"]
    assert (v15["gpt2_config"]["n_embd"], v15["gpt2_config"]["n_positions"], v15["hidden_size"]) == (2048, 4, 2048)
    assert (v15["sampling_rate"], v15["audio_codebook_sizes"], v15["model_type"]) == (
        24_000,
        [1024] * 3,
        "moss_tts_local",
    )
    realtime = published_config(RealtimeModelConfig())
    assert (realtime["audio_vocab_size"], realtime["audio_pad_token"]) == (1027, 1024)
    assert realtime["local_config"]["rope_parameters"] == {"rope_type": "linear", "factor": 1.0, "rope_theta": 1e6}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            None,
            "no config.json, so this is not a published checkpoint; name the folder that holds both",
        ),
        ("{", "config.json: cannot be read as JSON"),
        ("[]", "config.json: expected a JSON object, got list"),
    ],
)
def test_a_config_that_cannot_be_read(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_config(tmp_path)
