"""The one place that turns tokenizer settings into a tokenizer."""

import dataclasses
from importlib.resources import files
from pathlib import Path

import torch

from moss.config.load_tokenizer import with_geometry_of_weights
from moss.config.tokenizer import CatConfig, MelRvqConfig, TokenizerConfig
from moss.errors import ConfigError
from moss.tokenizer.interface import AudioTokenizer


def build_tokenizer(config: TokenizerConfig, device: str | torch.device = "cpu") -> AudioTokenizer:
    """Build the audio tokenizer that `config` describes, with its weights.

    Weights in a folder that says its own geometry (a published checkpoint, or one of ours) decide it. Of the weights,
    only the half that `config.part` names is read.

    Raises:
        ConfigError: The kind has no shipped weights and none are given, or the settings contradict the folder's.
        CheckpointError: The weights do not fit.
    """
    if isinstance(config, MelRvqConfig):
        from moss.tokenizer.mel_rvq import MelRvqTokenizer

        return MelRvqTokenizer.load(config, device)
    assert isinstance(config, CatConfig)
    weights = weights_path(config)
    from moss.tokenizer.cat import CatTokenizer

    config = dataclasses.replace(config, weights=weights)
    return CatTokenizer.load(with_geometry_of_weights(config), weights, device)


def weights_path(config: CatConfig) -> Path:
    """The weights that the settings name, a file or a folder; else the file that comes with the package.

    Raises:
        ConfigError: None are named, and none come with the package.
    """
    if config.weights is not None:
        return config.weights
    if config.shipped is None:
        raise ConfigError(
            "tokenizer.weights: these settings have no shipped weights; set it to a published checkpoint folder, or to "
            "a checkpoint folder that `python train.py task=tokenizer` writes; tokenizer=cat_embedded has weights"
        )
    path = Path(str(files("moss.tokenizer"))) / "weights" / f"{config.shipped}.safetensors"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.safetensors")))
        raise ConfigError(f"tokenizer.shipped: no weights {config.shipped!r} in {path.parent}, only {there}")
    return path


def device_problem(device: torch.device | str) -> str:
    """Why nothing can be computed on a device; empty where it can."""
    try:
        torch.zeros(1, device=device).item()
    # A build without CUDA asserts, a missing or unknown device is a RuntimeError, one from a package an ImportError.
    except (RuntimeError, AssertionError, ImportError) as error:
        return str(error).splitlines()[0]
    return ""
