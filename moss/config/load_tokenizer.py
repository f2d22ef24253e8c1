"""Tokenizer settings by name, file or checkpoint folder; and settings against what a checkpoint says of itself."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml

from moss.config.published_tokenizer import config_from_published
from moss.config.schema import build
from moss.config.tokenizer import CatConfig, TokenizerConfig
from moss.config.tokenizer_inventory import describe, preset_of, state_shapes
from moss.errors import CheckpointError, ConfigError

PUBLISHED_CONFIG, CARD_FILE = "config.json", "moss.json"
INDEX_FILE, WEIGHTS_FILE = "model.safetensors.index.json", "model.safetensors"
LISTED_DIFFERENCES = 20
"""How many contradicting settings an error spells out."""

_FOLDER = Path(__file__).parents[2] / "configs" / "tokenizer"


def load_tokenizer_config(name: str, weights: Path | None = None) -> TokenizerConfig:
    """Read `configs/tokenizer/<name>.yaml`, a .yaml file, a checkpoint folder, or take `name` as a kind.

    Where the weights are a folder that says its own geometry, that holds. See `with_geometry_of_weights`.

    Args:
        name: Name, path ending in .yaml or .yml, kind, or the folder of a published checkpoint or of one of ours.
        weights: Replaces the weights that the settings name.

    Raises:
        ConfigError: No such name or file, not YAML, or settings that are wrong (all are listed).
        CheckpointError: A folder that holds no tokenizer.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else _FOLDER / f"{name}.yaml"
    if path.is_file():
        values = _read_yaml(path)
    elif name in TokenizerConfig.variants:
        values = {"kind": name}
    elif Path(name).is_dir():
        found = config_of_folder(Path(name))
        return found if weights is None else with_geometry_of_weights(dataclasses.replace(found, weights=weights))
    else:
        known = sorted({p.stem for p in _FOLDER.glob("*.yaml")} | set(TokenizerConfig.variants))
        raise ConfigError(
            f"no tokenizer {name!r}; expected one of {', '.join(known)}, or the path of a .yaml file or of a "
            "checkpoint folder"
        )
    if weights is not None:
        values["weights"] = str(weights)
    config = build(TokenizerConfig, values)
    return with_geometry_of_weights(config) if isinstance(config, CatConfig) else config


def config_of_folder(folder: Path) -> CatConfig:
    """Settings of a checkpoint folder, published (config.json) or ours (moss.json), with the folder as weights.

    Raises:
        CheckpointError: The folder says no settings, or is no tokenizer's.
        ConfigError: The settings that it says are wrong.
    """
    card, published = folder / CARD_FILE, folder / PUBLISHED_CONFIG
    if card.is_file():
        values = _read_json(card)
        settings = values.get("tokenizer_config")
        if values.get("kind") != "tokenizer" or not isinstance(settings, dict):
            raise CheckpointError(
                f"{card}: not a tokenizer's checkpoint; expected kind 'tokenizer' with its tokenizer_config. A "
                "generator's checkpoint is no tokenizer; name the one that it was trained with"
            )
        config = build(TokenizerConfig, settings)
        if not isinstance(config, CatConfig):
            raise CheckpointError(f"{card}: the checkpoint of a {config.kind!r} tokenizer cannot be read as a folder")
    elif published.is_file():
        config = config_from_published(_read_json(published), _key_names(folder))
    else:
        raise CheckpointError(
            f"{folder}: no tokenizer's checkpoint; a published one has {PUBLISHED_CONFIG}, one of ours {CARD_FILE}"
        )
    return dataclasses.replace(config, weights=folder)


def with_geometry_of_weights(config: CatConfig) -> CatConfig:
    """The settings, with the geometry that the weights' folder says where the settings leave theirs open.

    Settings count as open where they are the class' defaults. A folder that says nothing, or a file, changes nothing.

    Raises:
        ConfigError: Settings that contradict the folder's; names both.
        CheckpointError: The folder is no tokenizer's.
    """
    folder = config.weights
    if folder is None or not ((folder / CARD_FILE).is_file() or (folder / PUBLISHED_CONFIG).is_file()):
        return config
    found = config_of_folder(folder)
    wanted, stored = config.geometry(), found.geometry()
    if config.decoder is None and wanted == CatConfig().geometry():
        names = ("sampling_rate_hz", "samples_per_frame", "num_audio_channels", "encoder", "decoder", "quantizer")
        return dataclasses.replace(config, **{name: getattr(found, name) for name in names})
    if wanted == stored:
        return config
    said_in = folder / (CARD_FILE if (folder / CARD_FILE).is_file() else PUBLISHED_CONFIG)
    lines = [
        f"{name}: the settings say {wanted.get(name, 'nothing')}, {said_in} says {stored.get(name, 'nothing')}"
        for name in [*wanted, *(name for name in stored if name not in wanted)]
        if wanted.get(name) != stored.get(name)
    ]
    shapes = state_shapes(found)
    remedy = f"tokenizer={preset_of(shapes)}" if preset_of(shapes) else "its own settings"
    headline = (
        f"{folder}: holds {describe(shapes)}, but the settings describe {describe(state_shapes(config))}; use "
        f"{remedy}, or the folder in place of a name: --tokenizer {folder}, in evaluate.py tokenizers=[{folder}]"
    )
    more = len(lines) - LISTED_DIFFERENCES
    lines[LISTED_DIFFERENCES:] = [f"and {more} more"] if more > 0 else []
    raise ConfigError("\n  ".join([headline, *lines]))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected settings as `key: value` lines, got {type(values).__name__}")
    # The list of files to merge is Hydra's; the schema it names is the one used here.
    values.pop("defaults", None)
    return values


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected an object of fields, got {type(values).__name__}")
    return values


def _key_names(folder: Path) -> frozenset[str]:
    """Names of a folder's tensors, for the settings' sake; whoever loads them says what is wrong with the files."""
    from safetensors import SafetensorError, safe_open

    index, single = folder / INDEX_FILE, folder / WEIGHTS_FILE
    if index.is_file():
        names = _read_json(index).get("weight_map")
        return frozenset(names) if isinstance(names, dict) else frozenset()
    if not single.is_file():
        return frozenset()
    try:
        with safe_open(single, framework="numpy") as file:
            return frozenset(file.keys())
    except (OSError, SafetensorError):
        return frozenset()
