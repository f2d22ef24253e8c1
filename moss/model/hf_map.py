"""config.json of a published checkpoint <-> our settings: one table per architecture.

Parameter names need no table: our networks use the published ones. What a checkpoint's own config.json says always
wins over a preset. Source: MOSS-TTS moss_tts_*/configuration_*.py @58b20a0 (names and defaults of the fields).
"""

import copy
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moss.config.model import (
    DelayModelConfig,
    DepthPosition,
    LocalModelConfig,
    LocalV15ModelConfig,
    Member,
    ModelConfig,
    RealtimeModelConfig,
    Template,
)
from moss.config.schema import build, to_plain
from moss.errors import CheckpointError, ConfigError
from moss.model.published_files import KINDS, published_skeleton

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
REALTIME_EXTRA_ROWS = 3
"""Rows of Realtime's audio tables beyond the codes: pad, begin, end."""


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class _Field:
    """Where a setting stands: the first path that is there is read, every one is written.

    A field without a value takes `default`; without that it must be there. `default` None leaves ours.
    """

    paths: tuple[str, ...]
    required: bool = False
    default: Any = None
    decode: Callable[[Any], Any] = _same
    encode: Callable[[Any], Any] = _same


def _backbone(*roots: str, mirrors: bool = True) -> dict[str, _Field]:
    """The fields of a Qwen3 configuration that stands at each of `roots`, and their copies at the top."""

    def at(*names: str) -> tuple[str, ...]:
        return tuple(f"{root}.{name}" for name in names for root in roots)

    copies = ("vocab_size", "hidden_size") if mirrors else ()
    return {
        "vocab_size": _Field(at("vocab_size") + copies[:1], required=True),
        "hidden_size": _Field(at("hidden_size") + copies[1:], required=True),
        "num_layers": _Field(at("num_hidden_layers"), required=True),
        "num_heads": _Field(at("num_attention_heads"), required=True),
        "num_kv_heads": _Field(at("num_key_value_heads"), required=True),
        "head_dim": _Field(at("head_dim")),
        "intermediate_size": _Field(at("intermediate_size"), required=True),
        "rms_norm_eps": _Field(at("rms_norm_eps")),
        "max_positions": _Field(at("max_position_embeddings")),
        "rope_theta": _Field(at("rope_parameters.rope_theta", "rope_theta")),
        "initializer_range": _Field(("initializer_range",)),
    }


def _named(*names: str) -> dict[str, _Field]:
    return {name: _Field((name,)) for name in names}


_DELAY = {
    **_backbone("language_config"),
    "num_codebooks": _Field(("n_vq",), required=True),
    "codebook_size": _Field(("audio_vocab_size",)),
    **_named("pad_token_id", "im_start_token_id", "im_end_token_id", "audio_start_token_id", "audio_end_token_id"),
    **_named("audio_user_slot_token_id", "audio_assistant_gen_slot_token_id", "audio_assistant_delay_slot_token_id"),
}
_LOCAL = {
    **_DELAY,
    "depth_hidden_size": _Field(("local_hidden_size",), required=True),
    "depth_num_layers": _Field(("local_num_layers",), required=True),
    "depth_intermediate_size": _Field(("local_ffn_hidden_size",), required=True),
    "depth_mlp_size": _Field(("additional_mlp_ffn_hidden_size",), required=True),
}
_POSITIONS = {"absolute": DepthPosition.learned.value, "rope": DepthPosition.rope.value}
_STOP_HEADS = {"full": "full_vocab", "full-vocab": "full_vocab", "vocab": "full_vocab"}
_LOCAL_V15 = {
    **_backbone("qwen3_config", "language_config"),
    "hidden_size": _Field(
        (
            *("qwen3_config.hidden_size", "language_config.hidden_size", "hidden_size"),
            *("local_hidden_size", "gpt2_config.n_embd"),
        ),
        required=True,
    ),
    "num_codebooks": _Field(("n_vq",), required=True),
    "codebook_size": _Field(("audio_vocab_size",)),
    **_named("pad_token_id", "im_start_token_id", "im_end_token_id", "audio_start_token_id", "audio_end_token_id"),
    **_named("audio_user_slot_token_id"),
    "audio_assistant_slot_token_id": _Field(("audio_assistant_gen_slot_token_id", "audio_assistant_slot_token_id")),
    "depth_num_layers": _Field(("local_transformer_layers", "gpt2_config.n_layer"), required=True),
    "depth_num_heads": _Field(("gpt2_config.n_head",), required=True),
    "depth_intermediate_size": _Field(("gpt2_config.n_inner",)),
    "depth_activation": _Field(("gpt2_config.activation_function",), default="gelu_new"),
    "depth_layer_norm_eps": _Field(("gpt2_config.layer_norm_epsilon",), default=1e-5),
    "depth_position": _Field(
        ("gpt2_config.position_embedding_type",),
        default="absolute",
        decode=lambda word: _POSITIONS.get(word, word),
        encode=lambda word: {ours: theirs for theirs, ours in _POSITIONS.items()}[word],
    ),
    "depth_rope_theta": _Field(("gpt2_config.rope_base",), default=10_000.0),
    "stop_head": _Field(
        ("local_text_head_mode",), default="binary", decode=lambda word: _STOP_HEADS.get(str(word).lower(), word)
    ),
}
_REALTIME = {
    **_backbone("language_config", mirrors=False),
    "num_codebooks": _Field(("rvq", "local_config.rvq")),
    "codebook_size": _Field(
        ("audio_vocab_size", "local_config.audio_vocab_size"),
        decode=lambda rows: rows - REALTIME_EXTRA_ROWS,
        encode=lambda size: size + REALTIME_EXTRA_ROWS,
    ),
    "pad_token_id": _Field(("language_config.pad_token_id",)),
    "reference_audio_pad_token_id": _Field(("reference_audio_pad",)),
    "text_pad_token_id": _Field(("text_pad",)),
    # The published code takes these three from the tokenizer and a constant; ours are kept in fields of their own.
    **_named("im_start_token_id", "im_end_token_id"),
    "text_lead": _Field(("delay_tokens_len",)),
    "depth_num_layers": _Field(("local_config.num_hidden_layers",), required=True),
    "depth_num_heads": _Field(("local_config.num_attention_heads",), required=True),
    "depth_num_kv_heads": _Field(("local_config.num_key_value_heads",), required=True),
    "depth_head_dim": _Field(("local_config.head_dim",), required=True),
    "depth_intermediate_size": _Field(("local_config.intermediate_size",), required=True),
    "depth_rope_theta": _Field(("local_config.rope_parameters.rope_theta", "local_config.rope_theta")),
}
_TABLES = {"delay": _DELAY, "local": _LOCAL, "local_v15": _LOCAL_V15, "realtime": _REALTIME}
_ROOTS, _ROTARY = ("language_config", "qwen3_config", "local_config"), ("rope_parameters", "rope_scaling")
_ROPE_KINDS = ("default", "linear")
_TEMPLATES = {
    "delay": Template.moss_tts_delay_v1,
    "local": Template.moss_tts_local_v1,
    "local_v15": Template.moss_tts_local_v15,
    "realtime": Template.moss_tts_realtime_v1,
}


def read_config(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The config.json of a folder, parsed and as bytes.

    Raises:
        CheckpointError: It is missing or not a JSON object.
    """
    path = folder / CONFIG_FILE
    try:
        content = path.read_bytes()
        published = json.loads(content)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: no {CONFIG_FILE}, so this is not a published checkpoint; name the folder that holds both "
            f"{CONFIG_FILE} and the weights"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); fetch it again") from error
    if not isinstance(published, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(published).__name__}; fetch it again")
    return published, content


def architecture_of(published: Mapping[str, Any]) -> str:
    """Our name of the architecture. Delay and Local v1 share a model_type; `local_num_layers` tells them apart.

    Raises:
        CheckpointError: Another model_type.
    """
    kind = published.get("model_type")
    if kind == "moss_tts_delay":
        return "local" if "local_num_layers" in published else "delay"
    for architecture, published_kind in KINDS.items():
        if kind == published_kind.model_type:
            return architecture
    known = ", ".join(dict.fromkeys(published_kind.model_type for published_kind in KINDS.values()))
    raise CheckpointError(
        f"{CONFIG_FILE}: model_type {kind!r} is no generator of this family; expected one of {known}; choose a "
        "checkpoint of one of these"
    )


def model_config(
    published: Mapping[str, Any], member: Member | None = None, template: Template | None = None
) -> ModelConfig:
    """Our settings for a published config.json.

    Args:
        published: The parsed file.
        member: What the checkpoint was trained to do; the file does not say. The architecture's usual one if None.
        template: Prompt format; by member and architecture if None.

    Raises:
        CheckpointError: Another model_type, a missing field (named), or something our networks do not have.
    """
    architecture = architecture_of(published)
    if architecture == "delay" and published.get("n_vq") == 16 and member is None and template is None:
        logger.warning(
            "16 codebooks: of the published ones MOSS-TTSD, VoiceGenerator and SoundEffect have as many. This is taken "
            "as member tts with template moss_tts_delay_v1; name another member (ttsd, voice_generator, sound_effect)"
        )
    return _convert(architecture, published, member, template)


def delay_config(published: Mapping[str, Any]) -> DelayModelConfig:
    """`model_config` of a MossTTSDelay config.json."""
    if "local_num_layers" in published:
        raise CheckpointError(
            "config.json has local_num_layers: this is a MossTTSLocal checkpoint, not MossTTSDelay; read it with "
            "`local_config`, or with `model_config`, which finds the architecture"
        )
    config = _convert("delay", published)
    assert isinstance(config, DelayModelConfig)
    return config


def local_config(published: Mapping[str, Any]) -> LocalModelConfig:
    """`model_config` of a MossTTSLocal v1 config.json."""
    config = _convert("local", published)
    assert isinstance(config, LocalModelConfig)
    return config


def local_v15_config(published: Mapping[str, Any]) -> LocalV15ModelConfig:
    """`model_config` of a MossTTSLocal v1.5 config.json."""
    config = _convert("local_v15", published)
    assert isinstance(config, LocalV15ModelConfig)
    return config


def realtime_config(published: Mapping[str, Any]) -> RealtimeModelConfig:
    """`model_config` of a MossTTSRealtime config.json."""
    config = _convert("realtime", published)
    assert isinstance(config, RealtimeModelConfig)
    return config


def published_config(
    config: ModelConfig, original: Mapping[str, Any] | None = None, sampling_rate_hz: int | None = None
) -> dict[str, Any]:
    """The config.json of our settings.

    Args:
        config: Ours.
        original: The file that the weights came with: only fields that differ are changed, unknown ones survive.
        sampling_rate_hz: Of the audio tokenizer, written where there is no original.

    Raises:
        CheckpointError: The original is of another architecture.
    """
    table = _TABLES[config.architecture]
    values = to_plain(config)
    if original is None:
        made = published_skeleton(config, sampling_rate_hz)
        for name, field in table.items():
            for path in field.paths:
                _put(made, path, field.encode(values[name]))
        return made
    given = architecture_of(original)
    if given != config.architecture:
        raise CheckpointError(
            f"{CONFIG_FILE}: the original is of architecture {given}, the model {config.architecture}; name the folder "
            "that the model's weights came from"
        )
    made = copy.deepcopy(dict(original))
    before = to_plain(_convert(config.architecture, original, config.member, config.template))
    for name, field in table.items():
        if values[name] != before[name]:
            there = [path for path in field.paths if _get(made, path) is not None]
            for path in there or field.paths[:1]:
                _put(made, path, field.encode(values[name]))
    if made.get("audio_codebook_sizes") is not None:
        made["audio_codebook_sizes"] = [config.codebook_size] * config.num_codebooks
    return made


def tied_names(config: ModelConfig) -> dict[str, str]:
    """Names that a published file may hold or leave out, because they are the weights of another name."""
    if not isinstance(config, LocalV15ModelConfig):
        return {}
    heads = {f"audio_lm_heads.{k}.weight": f"audio_embeddings.{k}.weight" for k in range(config.num_codebooks)}
    return {"text_lm_head.weight": "transformer.embed_tokens.weight", **heads}


def _convert(
    architecture: str, published: Mapping[str, Any], member: Member | None = None, template: Template | None = None
) -> ModelConfig:
    roots = ("qwen3_config", "language_config") if architecture == "local_v15" else ("language_config",)
    if not any(isinstance(published.get(root), Mapping) for root in roots):
        name = {"delay": "MossTTSDelay", "realtime": "MossTTSRealtime"}.get(architecture, "MossTTSLocal")
        raise CheckpointError(
            f"{CONFIG_FILE} has no {roots[0]}: not a {name} checkpoint; fetch it again, or choose another"
        )
    values: dict[str, Any] = {"architecture": architecture}
    missing = []
    for name, field in _TABLES[architecture].items():
        found = next((v for v in (_get(published, path) for path in field.paths) if v is not None), field.default)
        if found is not None:
            values[name] = _decoded(field, found)
        elif field.required:
            missing.append(field.paths[0])
    if missing:
        raise CheckpointError(
            f"{CONFIG_FILE}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; fetch it again, or "
            "add what the weights were made with"
        )
    if architecture == "local_v15":
        # GPT-2's own default.
        values.setdefault("depth_intermediate_size", 4 * values["hidden_size"])
    if template is None:
        is_dialogue = architecture == "delay" and member is Member.ttsd
        template = Template.moss_ttsd_v1 if is_dialogue else _TEMPLATES[architecture]
    values["template"] = template.value
    if member is not None:
        values["member"] = member.value
    try:
        config = build(ModelConfig, values)
    except ConfigError as error:
        raise CheckpointError(f"{CONFIG_FILE}: {error}") from error
    problems = _unsupported(published, config)
    if problems:
        raise CheckpointError(
            f"{CONFIG_FILE}: not a network that this program has; choose a checkpoint without these, or run it with "
            "its own code:\n  " + "\n  ".join(problems)
        )
    return config


def _decoded(field: _Field, value: Any) -> Any:
    try:
        return field.decode(value)
    except TypeError:
        raise CheckpointError(f"{CONFIG_FILE}: {field.paths[0]} cannot be {value!r}; fetch the file again") from None


def _unsupported(published: Mapping[str, Any], config: ModelConfig) -> list[str]:
    """What config.json asks for that our networks do not do."""
    fixed: dict[str, tuple[Any, ...]] = {}
    for root in _ROOTS:
        fixed |= {f"{root}.hidden_act": ("silu",), f"{root}.attention_bias": (False,)}
        fixed[f"{root}.use_sliding_window"] = (False,)
    if isinstance(config, DelayModelConfig):
        fixed["audio_pad_code"] = (config.codebook_size,)
    if isinstance(config, LocalV15ModelConfig):
        fixed["audio_codebook_sizes"] = ([config.codebook_size] * config.num_codebooks,)
        fixed["gpt2_config.n_embd"] = (config.hidden_size,)
        fixed |= {"gpt2_config.scale_attn_weights": (True,), "gpt2_config.scale_attn_by_inverse_layer_idx": (False,)}
    if isinstance(config, RealtimeModelConfig):
        fixed |= {"audio_pad_token": (config.codebook_size,), "local_config.hidden_size": (config.hidden_size,)}
        fixed |= {"local_config.audio_vocab_size": (config.codebook_size + REALTIME_EXTRA_ROWS,)}
        fixed |= {"local_config.rvq": (config.num_codebooks,), "local_config.rms_norm_eps": (config.rms_norm_eps,)}
    problems = [text for root in _ROOTS for name in _ROTARY for text in _rotary_problems(published, f"{root}.{name}")]
    for path, allowed in fixed.items():
        value = _get(published, path)
        if value is not None and value not in allowed:
            problems.append(f"{path} is {value!r}; only {' or '.join(repr(choice) for choice in allowed)} is supported")
    return problems


def _rotary_problems(published: Mapping[str, Any], path: str) -> list[str]:
    """What a description of rotary positions, of today's form or the one before, asks for beyond a base."""
    value = _get(published, path)
    if value is None:
        return []
    if not isinstance(value, Mapping):
        return [f"{path} is {value!r}; only an object is supported"]
    return [
        f"{path}.{name} is {value[name]!r}; only {' or '.join(map(repr, allowed))} is supported"
        for name, allowed in (("rope_type", _ROPE_KINDS), ("type", _ROPE_KINDS), ("factor", (1,)))
        if value.get(name) is not None and value[name] not in allowed
    ]


def _get(content: Any, path: str) -> Any:
    for name in path.split("."):
        content = content.get(name) if isinstance(content, Mapping) else None
    return content


def _put(content: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        content = content.setdefault(name, {})
    content[last] = value
