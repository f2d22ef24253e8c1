"""Published Cat checkpoints: configuration, state-dict names of three generations, and strict loading.

The network uses the names of the 24 kHz checkpoint. Older and newer names are translated on reading.
Source: MOSS-Audio-Tokenizer configuration_moss_audio_tokenizer.py and state dicts @56df9ee.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from moss.config.schema import build
from moss.config.tokenizer import CatConfig
from moss.errors import CheckpointError, ConfigError

LISTED_KEYS = 20
"""How many keys of a kind an error spells out."""

_TO_CANONICAL = (
    (re.compile(r"\.self_attn\.(in|out)_proj(?:_|\.)weight$"), r".self_attn.\1_projs.0.weight"),
    (re.compile(r"\.ffn\.0\.weight$"), ".linear1.weight"),
    (re.compile(r"\.ffn\.2\.weight$"), ".linear2.weight"),
    (re.compile(r"\.weight_g$"), ".parametrizations.weight.original0"),
    (re.compile(r"\.weight_v$"), ".parametrizations.weight.original1"),
)
_TO_48KHZ = (
    (re.compile(r"\.self_attn\.(in|out)_projs\.0\.weight$"), r".self_attn.\1_proj.weight"),
    (re.compile(r"\.linear1\.weight$"), ".ffn.0.weight"),
    (re.compile(r"\.linear2\.weight$"), ".ffn.2.weight"),
)
_QUANTIZER_FIELDS = {
    "input_dim": "input_size",
    "rvq_dim": "residual_size",
    "output_dim": "output_size",
    "num_quantizers": "num_codebooks",
    "codebook_size": "codebook_size",
    "codebook_dim": "code_size",
}
_STAGE_FIELDS = {
    "input_dimension": "input_size",
    "output_dimension": "output_size",
    "d_model": "hidden_size",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "dim_feedforward": "intermediate_size",
    "max_period": "rope_theta",
    "layer_scale": "layer_scale_init",
}
_ONLY_SUPPORTED = {"norm": "layer_norm", "positional_embedding": "rope", "gating": "none", "causal": True}
_QUANTIZER_TYPES = ("rlfq", "random_prefix_rlfq")


def canonical_key(key: str) -> str:
    """A state-dict name of any generation as the 24 kHz checkpoint spells it."""
    for pattern, replacement in _TO_CANONICAL:
        key = pattern.sub(replacement, key)
    return key


def key_48khz(key: str) -> str:
    """A canonical state-dict name as the 48 kHz and Nano checkpoints spell it."""
    for pattern, replacement in _TO_48KHZ:
        key = pattern.sub(replacement, key)
    return key


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights strictly; legacy names are translated.

    Raises:
        CheckpointError: Lists keys that are missing, unknown, given twice, or of another shape.
    """
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    given: dict[str, Tensor] = {}
    problems: dict[str, list[str]] = {"given twice": [], "missing": [], "unknown": [], "of another shape": []}
    for key, value in state.items():
        name = canonical_key(key)
        if name in given:
            problems["given twice"].append(f"{name} (again as {key})")
        elif name not in expected:
            problems["unknown"].append(key)
        elif tuple(value.shape) != expected[name]:
            problems["of another shape"].append(f"{name} expected {expected[name]}, got {tuple(value.shape)}")
        given[name] = value
    problems["missing"] = [name for name in expected if name not in given]
    if any(problems.values()):
        lines = [f"{source}: not the weights of this tokenizer; check that the tokenizer settings fit the file"]
        lines += [_listing(what, keys) for what, keys in problems.items() if keys]
        raise CheckpointError("\n".join(lines))
    model.load_state_dict(given)


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, or of a folder with `model.safetensors` or a sharded index.

    Raises:
        CheckpointError: Nothing readable there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    state: dict[str, Tensor] = {}
    for file in _weight_files(path):
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file; a tokenizer's weights are a safetensors file or its folder")
        try:
            state.update(load_file(file))
        except SafetensorError as error:
            raise CheckpointError(f"{file}: not a safetensors file ({error}); fetch or export it again") from error
    return state


def write_weights(path: Path, model: nn.Module) -> None:
    """Write the state dict as safetensors, atomically."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(state, temporary, metadata={"format": "pt"})
    os.replace(temporary, path)


def config_from_published(values: Mapping[str, Any]) -> CatConfig:
    """Our settings for a published `config.json`.

    `model_type`, `version`, `code_dim` and `reversed_decoder_kwargs` have no effect there and are ignored.

    Raises:
        ConfigError: The checkpoint uses an operator that no published weights use, or its sizes contradict.
    """
    problems: list[str] = []
    quantizer = dict(values["quantizer_kwargs"])
    kind = values.get("quantizer_type", quantizer.get("quantizer_type", "rlfq"))
    if kind not in _QUANTIZER_TYPES:
        problems.append(f"quantizer_type: expected one of {', '.join(_QUANTIZER_TYPES)}, got {kind!r}")
    window_s = float(values.get("causal_transformer_context_duration", 10.0))
    plain = {
        "kind": "cat",
        "sampling_rate_hz": values.get("sampling_rate", values.get("sample_rate", 24_000)),
        "samples_per_frame": values["downsample_rate"],
        "encoder": _stages(values, "encoder_kwargs", window_s, problems),
        "decoder": _stages(values, "decoder_kwargs", window_s, problems),
        "quantizer": {ours: quantizer[theirs] for theirs, ours in _QUANTIZER_FIELDS.items()},
    }
    if problems:
        raise ConfigError("published tokenizer configuration:\n" + "\n".join(problems))
    return build(CatConfig, plain)


def _stages(values: Mapping[str, Any], name: str, window_s: float, problems: list[str]) -> list[dict[str, Any]]:
    stages: list[dict[str, Any]] = []
    for i, entry in enumerate(values[name]):
        if entry["module_type"] == "PatchedPretransform":
            stages.append({"kind": "patch", "patch_size": entry["patch_size"]})
        elif entry["module_type"] == "Transformer":
            for field, supported in _ONLY_SUPPORTED.items():
                if entry.get(field, supported) != supported:
                    problems.append(f"{name}[{i}].{field}: only {supported!r} is supported, got {entry[field]!r}")
            stage = {ours: entry[theirs] for theirs, ours in _STAGE_FIELDS.items() if theirs in entry}
            stages.append({"kind": "transformer", "context_s": entry.get("context_duration", window_s), **stage})
        else:
            problems.append(f"{name}[{i}].module_type: expected Transformer or PatchedPretransform, got {entry!r}")
    return stages


def _weight_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return [path / "model.safetensors"]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (json.JSONDecodeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{index}: no readable weight_map ({error!r}); fetch the checkpoint again") from error
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CheckpointError(f"{index}: shards must lie beside the index, got {outside[0]!r}")
    return [path / name for name in names]


def _listing(what: str, keys: list[str]) -> str:
    shown = "\n".join(f"    {key}" for key in keys[:LISTED_KEYS])
    rest = f"\n    and {len(keys) - LISTED_KEYS} more" if len(keys) > LISTED_KEYS else ""
    return f"  {len(keys)} {what}:\n{shown}{rest}"
