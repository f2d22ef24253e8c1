"""Each published preset has, on the meta device, the tensors that the published state dicts have.

The tables below are written from the published modules, not from ours; `published_shapes` is used by other tests too.
"""

import dataclasses
import math

import pytest
import torch

from moss.config.compose import load_config
from moss.config.model import (
    LocalModelConfig,
    LocalV15ModelConfig,
    Member,
    ModelConfig,
    RealtimeModelConfig,
    Template,
)
from moss.config.train import TrainConfig
from moss.model.build import build_model

Shapes = dict[str, tuple[int, ...]]

# preset -> architecture, member, template, codebooks, parameters in millions (published sizes: 8B, 1.7B, 4B; the
# tables of 151,936 text ids and the depth networks come on top of the backbone's).
PUBLISHED = {
    "delay_8b": ("delay", Member.tts, Template.moss_tts_delay_v1, 32, 8460),
    "ttsd_8b": ("delay", Member.ttsd, Template.moss_ttsd_v1, 16, 8325),
    "sound_effect_8b": ("delay", Member.sound_effect, Template.moss_tts_delay_v1, 16, 8325),
    "voice_generator_1_7b": ("delay", Member.voice_generator, Template.moss_tts_delay_v1, 16, 2099),
    "local_1_7b": ("local", Member.tts, Template.moss_tts_local_v1, 32, 3038),
    "local_v15_4b": ("local_v15", Member.tts, Template.moss_tts_local_v15, 12, 4130),
    "realtime_1_7b": ("realtime", Member.realtime, Template.moss_tts_realtime_v1, 16, 2332),
}
TINY = {
    "ttsd_xs": (Member.ttsd, Template.moss_ttsd_v1),
    "voice_generator_xs": (Member.voice_generator, Template.moss_tts_delay_v1),
    "sound_effect_xs": (Member.sound_effect, Template.moss_tts_delay_v1),
}


def decoder_shapes(
    prefix: str, layers: int, width: int, heads: int, kv_heads: int, head_dim: int, inner: int
) -> Shapes:
    """Qwen3 blocks and the final norm."""
    shapes: Shapes = {f"{prefix}.norm.weight": (width,)}
    for layer in range(layers):
        block = f"{prefix}.layers.{layer}"
        shapes |= {
            f"{block}.self_attn.q_proj.weight": (heads * head_dim, width),
            f"{block}.self_attn.k_proj.weight": (kv_heads * head_dim, width),
            f"{block}.self_attn.v_proj.weight": (kv_heads * head_dim, width),
            f"{block}.self_attn.o_proj.weight": (width, heads * head_dim),
            f"{block}.self_attn.q_norm.weight": (head_dim,),
            f"{block}.self_attn.k_norm.weight": (head_dim,),
            f"{block}.mlp.gate_proj.weight": (inner, width),
            f"{block}.mlp.up_proj.weight": (inner, width),
            f"{block}.mlp.down_proj.weight": (width, inner),
            f"{block}.input_layernorm.weight": (width,),
            f"{block}.post_attention_layernorm.weight": (width,),
        }
    return shapes


def backbone_shapes(prefix: str, c: ModelConfig) -> Shapes:
    """Blocks and text table of the backbone."""
    blocks = decoder_shapes(
        prefix, c.num_layers, c.hidden_size, c.num_heads, c.num_kv_heads, c.head_dim, c.intermediate_size
    )
    return blocks | {f"{prefix}.embed_tokens.weight": (c.vocab_size, c.hidden_size)}


def delay_shapes(c: ModelConfig) -> Shapes:
    rows, width = c.codebook_size + 1, c.hidden_size
    shapes = backbone_shapes("language_model", c) | {"lm_heads.0.weight": (c.vocab_size, width)}
    for k in range(c.num_codebooks):
        shapes |= {f"emb_ext.{k}.weight": (rows, width), f"lm_heads.{k + 1}.weight": (rows, width)}
    return shapes


def gated_shapes(prefix: str, inner: int, width_in: int, width_out: int) -> Shapes:
    return {
        f"{prefix}.gate_proj.weight": (inner, width_in),
        f"{prefix}.up_proj.weight": (inner, width_in),
        f"{prefix}.down_proj.weight": (width_out, inner),
    }


def local_shapes(c: LocalModelConfig) -> Shapes:
    width, depth, mlp = c.hidden_size, c.depth_hidden_size, c.depth_mlp_size
    shapes = backbone_shapes("model.language_model", c)
    shapes |= decoder_shapes(
        "local_transformer",
        c.depth_num_layers,
        depth,
        c.num_heads,
        c.num_kv_heads,
        c.head_dim,
        c.depth_intermediate_size,
    )
    shapes |= gated_shapes("speech_embedding_to_local_mlp", mlp, width, depth)
    for channel in range(1 + c.num_codebooks):
        rows = c.vocab_size if channel == 0 else c.codebook_size + 1
        shapes |= gated_shapes(f"local_to_speech_embedding_mlps.{channel}", mlp, depth, width)
        shapes |= {
            f"model.embedding_list.{channel}.weight": (rows, width),
            f"lm_heads.{channel}.weight": (rows, width),
            f"layer_norm_before_lm_heads.{channel}.weight": (width,),
        }
    return shapes


def local_v15_shapes(c: LocalV15ModelConfig) -> Shapes:
    width, inner = c.hidden_size, c.depth_intermediate_size
    shapes = backbone_shapes("transformer", c)
    for layer in range(c.depth_num_layers):
        block = f"local_transformer.h.{layer}"
        matrices = {"attn.c_attn": (3 * width, width), "attn.c_proj": (width, width)}
        matrices |= {"mlp.fc_in": (inner, width), "mlp.fc_out": (width, inner)}
        for name, shape in matrices.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{name}.weight": (width,), f"{block}.{name}.bias": (width,)}
    shapes |= {"local_transformer.ln_f.weight": (width,), "local_transformer.ln_f.bias": (width,)}
    if c.depth_position == "learned":
        shapes["local_transformer.wpe.weight"] = (c.num_codebooks + 1, width)
    for k in range(c.num_codebooks):
        shapes[f"audio_embeddings.{k}.weight"] = (c.codebook_size, width)
    return shapes | ({"local_text_lm_head.weight": (2, width)} if c.stop_head == "binary" else {}) | tied_shapes(c)


def tied_shapes(c: ModelConfig) -> Shapes:
    """The names of v1.5 that share the weights of another."""
    heads = {f"audio_lm_heads.{k}.weight": (c.codebook_size, c.hidden_size) for k in range(c.num_codebooks)}
    return {"text_lm_head.weight": (c.vocab_size, c.hidden_size), **heads}


def realtime_shapes(c: RealtimeModelConfig) -> Shapes:
    rows, width = c.codebook_size + 3, c.hidden_size
    shapes = backbone_shapes("language_model", c) | {"embed_tokens.0.weight": (c.vocab_size, width)}
    shapes |= decoder_shapes(
        "local_transformer.model",
        c.depth_num_layers,
        width,
        c.depth_num_heads,
        c.depth_num_kv_heads,
        c.depth_head_dim,
        c.depth_intermediate_size,
    )
    for k in range(c.num_codebooks):
        shapes[f"embed_tokens.{k + 1}.weight"] = (rows, width)
        shapes[f"local_transformer.local_lm_heads.{k}.weight"] = (rows, width)
        if k < c.num_codebooks - 1:
            shapes[f"local_transformer.model.embed_tokens.{k}.weight"] = (rows, width)
    return shapes


def published_shapes(config: ModelConfig) -> Shapes:
    """Names and shapes of a published checkpoint's tensors, tied ones under each of their names."""
    if isinstance(config, LocalModelConfig):
        return local_shapes(config)
    if isinstance(config, LocalV15ModelConfig):
        return local_v15_shapes(config)
    return realtime_shapes(config) if isinstance(config, RealtimeModelConfig) else delay_shapes(config)


def preset(name: str) -> ModelConfig:
    return load_config(TrainConfig, "train", [f"model={name}"]).model


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_shapes_and_count(name: str) -> None:
    config = preset(name)
    architecture, member, template, codebooks, millions = PUBLISHED[name]
    assert (config.architecture, config.member, config.template) == (architecture, member, template)
    assert config.num_codebooks == codebooks
    with torch.device("meta"):
        model = build_model(config)
    expected = published_shapes(config)
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == expected
    distinct = {
        key: shape for key, shape in expected.items() if architecture != "local_v15" or key not in tied_shapes(config)
    }
    count = sum(math.prod(shape) for shape in distinct.values())
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert round(count / 1e6) == pytest.approx(millions, abs=1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_nobody_verified_is_marked(name: str) -> None:
    config = preset(name)
    assert "vocab_size" in config.unverified
    assert not set(config.unverified) - {field.name for field in dataclasses.fields(config)}
    assert ("num_codebooks" in config.unverified) == (name in ("sound_effect_8b", "voice_generator_1_7b"))


@pytest.mark.parametrize("name", TINY)
def test_tiny_members_are_the_tiny_delay_model(name: str) -> None:
    config = preset(name)
    assert (config.member, config.template) == TINY[name]
    assert dataclasses.replace(preset("delay_xs"), member=config.member, template=config.template) == config
