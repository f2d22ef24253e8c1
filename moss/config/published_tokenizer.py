"""The `config.json` of published Cat checkpoints <-> our settings.

Two generations of published code write it: v1 (24 kHz mono) and v2 (48 kHz stereo, Nano). v2 always has projections in
and out, gives every transformer its own window, and interleaves its audio channels.
Source: MOSS-Audio-Tokenizer configuration_moss_audio_tokenizer.py and config.json @56df9ee; for v2 the configuration
class of MOSS-Audio-Tokenizer-v2.
"""

import logging
from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Any

from moss.config.schema import build, check, format_problems
from moss.config.tokenizer import CatConfig, CatStage, ComputeDtype, PatchStage, TransformerStage
from moss.errors import ConfigError

log = logging.getLogger(__name__)

_TITLE = "published tokenizer configuration"
_QUANTIZER_FIELDS = {
    "input_dim": "input_size",
    "rvq_dim": "residual_size",
    "output_dim": "output_size",
    "num_quantizers": "num_codebooks",
    "codebook_size": "codebook_size",
    "codebook_dim": "code_size",
}
_SIZES = {
    "input_dimension": "input_size",
    "output_dimension": "output_size",
    "d_model": "hidden_size",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "dim_feedforward": "intermediate_size",
}
_FACTORS = {"max_period": "rope_theta", "layer_scale": "layer_scale_init"}
_ONLY_SUPPORTED = {"norm": "layer_norm", "positional_embedding": "rope", "gating": "none", "causal": True}
_WITHOUT_EFFECT = {"module_type", "conv_layout", "context_duration"}
_QUANTIZER_TYPES = ("rlfq", "random_prefix_rlfq")
_ATTENTION = ("sdpa", "flash_attention_2")
_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"} | {kind.value: kind.value for kind in ComputeDtype}
_V2_FIELDS = (
    "number_channels",
    "channels_numbers",
    "enable_channel_interleave",
    "attention_implementation",
    "attention_backend",
    "compute_dtype",
    "codec_compute_dtype",
    "codec_weight_dtype",
    "codec_load_dtype",
)
_ABSENT = object()


class Generation(StrEnum):
    """Which published code reads a checkpoint."""

    v1 = "v1"
    """24 kHz mono; projections only where the widths differ, one window in seconds for all stages."""
    v2 = "v2"
    """48 kHz stereo and Nano; projections everywhere, a window per stage, interleaved audio channels."""


def generation_of(values: Mapping[str, Any]) -> Generation:
    """Which published code wrote a `config.json`, by the fields that only v2 knows."""
    entries = [entry for name in ("encoder_kwargs", "decoder_kwargs") for entry in _list(values.get(name))]
    has_windows = any(isinstance(entry, Mapping) and "context_duration" in entry for entry in entries)
    return Generation.v2 if has_windows or any(name in values for name in _V2_FIELDS) else Generation.v1


def config_from_published(values: Mapping[str, Any], keys: Collection[str] = ()) -> CatConfig:
    """Our settings for a published `config.json`.

    `model_type`, `version` and `code_dim` have no effect there and are ignored; so is `reversed_decoder_kwargs` where
    `decoder_kwargs` is given. A missing decoder is never guessed: the class' own default does not invert its encoder.

    Args:
        values: The file's content.
        keys: Names of the checkpoint's tensors, where they are at hand: they show which projections exist. Without them
            the generation decides.

    Raises:
        ConfigError: Something that no published weights use, missing fields, or sizes that contradict; lists all.
    """
    problems: list[str] = []
    if not isinstance(values, Mapping):
        raise ConfigError(f"{_TITLE}: expected an object of fields, got {type(values).__name__}")
    generation = generation_of(values)
    window_s = values.get("causal_transformer_context_duration", 10.0)
    plain = {
        "kind": "cat",
        "sampling_rate_hz": _one_of(values, ("sampling_rate", "sample_rate"), problems),
        "samples_per_frame": _one_of(values, ("downsample_rate",), problems),
        "num_audio_channels": _audio_channels(values, generation, problems),
        "compute_dtype": _compute_dtype(values, problems),
        "encoder": _stages("encoder", "encoder_kwargs", values.get("encoder_kwargs"), window_s, problems),
        "decoder": _decoder(values, generation, window_s, problems),
        "quantizer": _quantizer(values, problems),
    }
    is_readable = not problems
    problems += _unused_by_published_weights(values)
    if is_readable:
        for side in ("encoder", "decoder"):
            for i, stage in enumerate(plain[side]):
                if stage["kind"] == "transformer":
                    stage["always_project"] = _always_projects(f"{side}.{i}.", stage, generation, keys)
        problems += check(CatConfig, plain)
    config = build(CatConfig, plain) if not problems else None
    if config is not None and generation is Generation.v2:
        problems += _windows_that_v2_rounds(config)
    if problems or config is None:
        raise ConfigError(f"{_TITLE}: {format_problems(problems)}")
    return config


def unfit_for(config: CatConfig, generation: Generation) -> list[str]:
    """Why a generation's code cannot run a network; empty where it can.

    v2 can run what v1 can, since a projection that is not there is an identity one.
    """
    if generation is Generation.v2:
        return _windows_that_v2_rounds(config)
    problems = []
    if config.num_audio_channels != 1:
        problems.append(f"num_audio_channels: v1 is mono, got {config.num_audio_channels}")
    windows = set()
    for side, stages in (("encoder", config.encoder), ("decoder", config.decoder_stages())):
        for i, stage in enumerate(stages):
            if isinstance(stage, TransformerStage):
                windows.add(stage.context_s)
                equal = stage.hidden_size in (stage.input_size, stage.output_size)
                if stage.always_project and equal:
                    problems.append(f"{side}[{i}].always_project: v1 has no projection where the widths agree")
    if len(windows) > 1:
        problems.append(f"context_s: v1 has one window for all stages, got {', '.join(map(str, sorted(windows)))}")
    return problems


def published_config(config: CatConfig, generation: Generation, weight_dtype: str = "float32") -> dict[str, Any]:
    """The `config.json` with which a generation's code reads a network.

    Args:
        config: The network; see `unfit_for`.
        generation: Whose form and fields.
        weight_dtype: Of the stored encoder and decoder: float32, bfloat16 or float16.
    """
    is_v2 = generation is Generation.v2
    stages = {"encoder_kwargs": config.encoder, "decoder_kwargs": config.decoder_stages()}
    windows = [stage.context_s for stage in config.encoder if isinstance(stage, TransformerStage)]
    quantizer = {theirs: getattr(config.quantizer, ours) for theirs, ours in _QUANTIZER_FIELDS.items()}
    made = {
        "architectures": ["MossAudioTokenizerModel"],
        "auto_map": {
            "AutoConfig": "configuration_moss_audio_tokenizer.MossAudioTokenizerConfig",
            "AutoModel": "modeling_moss_audio_tokenizer.MossAudioTokenizerModel",
        },
        "causal_transformer_context_duration": max(windows, default=10.0),
        "code_dim": config.quantizer.input_size,
        "downsample_rate": config.samples_per_frame,
        "dtype": weight_dtype,
        "model_type": "moss-audio-tokenizer",
        "quantizer_kwargs": quantizer | {"quantizer_type": "rlfq"},
        "quantizer_type": "rlfq",
        "sample_rate": config.sampling_rate_hz,
        "sampling_rate": config.sampling_rate_hz,
    }
    made |= {name: [_entry(stage, is_v2) for stage in listed] for name, listed in stages.items()}
    if is_v2:
        made |= {
            "attention_implementation": "sdpa",
            "codec_weight_dtype": _DTYPES[weight_dtype],
            "compute_dtype": config.compute_dtype.value,
            "enable_channel_interleave": True,
            "number_channels": config.num_audio_channels,
        }
    return dict(sorted(made.items()))


def _windows_that_v2_rounds(config: CatConfig) -> list[str]:
    """Windows that are no whole number of positions: v1 and we cut the rest off, v2 rounds it."""
    problems = []
    rate_hz = config.positions_per_s
    for side, stages in (("encoder", config.encoder), ("decoder", config.decoder_stages())):
        for i, stage in enumerate(stages):
            if isinstance(stage, PatchStage):
                rate_hz = rate_hz / stage.patch_size if side == "encoder" else rate_hz * stage.patch_size
            elif isinstance(stage, TransformerStage) and int(rate_hz * stage.context_s) != round(
                rate_hz * stage.context_s
            ):
                problems.append(
                    f"{side}[{i}].context_s: {stage.context_s} s are {rate_hz * stage.context_s:g} positions at "
                    f"{rate_hz:g} Hz, which v2 rounds up; only whole numbers are supported"
                )
    return problems


def _entry(stage: CatStage, has_window: bool) -> dict[str, Any]:
    if isinstance(stage, PatchStage):
        return {"module_type": "PatchedPretransform", "patch_size": stage.patch_size}
    assert isinstance(stage, TransformerStage)
    fields = {theirs: getattr(stage, ours) for theirs, ours in (_SIZES | _FACTORS).items()}
    entry = {"module_type": "Transformer", "conv_layout": True} | _ONLY_SUPPORTED | fields
    return entry | {"context_duration": stage.context_s} if has_window else entry


def _one_of(values: Mapping[str, Any], names: tuple[str, ...], problems: list[str], default: Any = _ABSENT) -> Any:
    """The value of a field that has several names."""
    given = {name: values[name] for name in names if values.get(name) is not None}
    if not given:
        if default is _ABSENT:
            problems.append(f"{names[0]}: is missing")
            return None
        return default
    first, value = next(iter(given.items()))
    for name, other in given.items():
        if other != value:
            problems.append(f"{name}: {other!r} contradicts {first}={value!r}, which means the same")
    return value


def _audio_channels(values: Mapping[str, Any], generation: Generation, problems: list[str]) -> Any:
    default = 2 if generation is Generation.v2 else 1
    return _one_of(values, ("number_channels", "channels_numbers"), problems, default)


def _compute_dtype(values: Mapping[str, Any], problems: list[str]) -> str:
    wanted = _one_of(values, ("compute_dtype", "codec_compute_dtype"), problems, ComputeDtype.fp32.value)
    return _DTYPES.get(str(wanted), str(wanted))


def _quantizer(values: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    given = values.get("quantizer_kwargs")
    if not isinstance(given, Mapping):
        problems.append(f"quantizer_kwargs: expected an object of fields, got {given!r}")
        return {}
    problems += [f"quantizer_kwargs.{name}: is missing" for name in _QUANTIZER_FIELDS if name not in given]
    return {ours: given[theirs] for theirs, ours in _QUANTIZER_FIELDS.items() if theirs in given}


def _decoder(
    values: Mapping[str, Any], generation: Generation, window_s: Any, problems: list[str]
) -> list[dict[str, Any]]:
    # In the 48 kHz form what a decoder's module leaves open is the shortest window of the encoder.
    if generation is Generation.v2:
        entries = [entry for entry in _list(values.get("encoder_kwargs")) if isinstance(entry, Mapping)]
        told = [e.get("context_duration", window_s) for e in entries if e.get("module_type") == "Transformer"]
        window_s = min((window for window in told if isinstance(window, int | float)), default=window_s)
    if values.get("decoder_kwargs") is not None:
        return _stages("decoder", "decoder_kwargs", values["decoder_kwargs"], window_s, problems)
    name = "reversed_decoder_kwargs"
    if values.get(name) is None:
        problems.append(
            "decoder_kwargs: is missing, and so is reversed_decoder_kwargs; the published class' default decoder does "
            "not invert the encoder, so nothing is guessed: take the checkpoint's own config.json"
        )
        return []
    stages = _stages("decoder", name, values[name], window_s, problems)
    swapped = {"input_size": "output_size", "output_size": "input_size"}
    return [{swapped.get(field, field): value for field, value in stage.items()} for stage in reversed(stages)]


def _stages(side: str, name: str, given: Any, window_s: Any, problems: list[str]) -> list[dict[str, Any]]:
    if not isinstance(given, list):
        problems.append(f"{name}: expected the list of the {side}'s modules, got {given!r}")
        return []
    stages: list[dict[str, Any]] = []
    for i, entry in enumerate(given):
        kind = entry.get("module_type") if isinstance(entry, Mapping) else None
        fields = {"PatchedPretransform": {"patch_size": "patch_size"}, "Transformer": _SIZES}.get(str(kind))
        if fields is None:
            problems.append(f"{name}[{i}].module_type: expected Transformer or PatchedPretransform, got {entry!r}")
            continue
        problems += [f"{name}[{i}].{field}: is missing" for field in fields if field not in entry]
        stage = {ours: entry[theirs] for theirs, ours in fields.items() if theirs in entry}
        if kind == "PatchedPretransform":
            stages.append({"kind": "patch", **stage})
            continue
        stage |= {ours: entry[theirs] for theirs, ours in _FACTORS.items() if theirs in entry}
        stages.append({"kind": "transformer", "context_s": entry.get("context_duration", window_s), **stage})
    return stages


def _unused_by_published_weights(values: Mapping[str, Any]) -> list[str]:
    """Options that the published code has, but no published weights use."""
    problems = []
    for place, holder in (("", values), ("quantizer_kwargs.", values.get("quantizer_kwargs"))):
        kind = holder.get("quantizer_type") if isinstance(holder, Mapping) else None
        if kind not in (None, *_QUANTIZER_TYPES):
            problems.append(f"{place}quantizer_type: expected one of {', '.join(_QUANTIZER_TYPES)}, got {kind!r}")
    channels = values.get("number_channels", values.get("channels_numbers"))
    if values.get("enable_channel_interleave") is False and channels not in (None, 1):
        problems.append(
            f"enable_channel_interleave: {channels} audio channels are only supported as one interleaved stream, "
            "got false"
        )
    for name in ("attention_implementation", "attention_backend"):
        if values.get(name, _ATTENTION[0]) not in _ATTENTION:
            problems.append(f"{name}: expected one of {', '.join(_ATTENTION)}, got {values[name]!r}")
    for name in ("codec_weight_dtype", "codec_load_dtype"):
        if str(values.get(name, "fp32")) not in _DTYPES:
            problems.append(f"{name}: expected one of {', '.join(_DTYPES)}, got {values[name]!r}")
    for name in ("encoder_kwargs", "decoder_kwargs", "reversed_decoder_kwargs"):
        if name == "reversed_decoder_kwargs" and values.get("decoder_kwargs") is not None:
            continue
        for i, entry in enumerate(_list(values.get(name))):
            if isinstance(entry, Mapping) and entry.get("module_type") == "Transformer":
                problems += _unused_in_stage(f"{name}[{i}]", entry)
    return problems


def _unused_in_stage(where: str, entry: Mapping[str, Any]) -> list[str]:
    problems = [
        f"{where}.{field}: only {supported!r} is supported, got {entry[field]!r}"
        for field, supported in _ONLY_SUPPORTED.items()
        if entry.get(field, supported) != supported
    ]
    if "layer_scale" in entry and entry["layer_scale"] is None:
        problems.append(f"{where}.layer_scale: blocks without it are not supported, got None")
    known = _SIZES.keys() | _FACTORS.keys() | _ONLY_SUPPORTED.keys() | _WITHOUT_EFFECT
    unknown = sorted(entry.keys() - known)
    if unknown:
        log.warning("%s: %s: nothing is known about it, it is ignored", where, ", ".join(unknown))
    return problems


def _always_projects(stem: str, stage: Mapping[str, Any], generation: Generation, keys: Collection[str]) -> bool:
    equal = [side for side in ("input", "output") if stage[f"{side}_size"] == stage["hidden_size"]]
    if keys and equal:
        return any(f"{stem}{side}_proj.weight" in keys for side in equal)
    return generation is Generation.v2


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
