"""The one place that turns tokenizer settings into a tokenizer."""

import torch

from moss.config.tokenizer import CatConfig, MelRvqConfig, TokenizerConfig
from moss.errors import ConfigError
from moss.tokenizer.interface import AudioTokenizer


def build_tokenizer(config: TokenizerConfig, device: str | torch.device = "cpu") -> AudioTokenizer:
    """Build the audio tokenizer that `config` describes, with its weights.

    Raises:
        ConfigError: The kind has no shipped weights and none are given.
        CheckpointError: The weights do not fit.
    """
    if isinstance(config, MelRvqConfig):
        from moss.tokenizer.mel_rvq import MelRvqTokenizer

        return MelRvqTokenizer.load(config, device)
    assert isinstance(config, CatConfig)
    if config.weights is None:
        raise ConfigError(
            "tokenizer.weights: kind 'cat' ships no weights; set it to a published checkpoint folder, or to the "
            "safetensors file that `python train.py experiment=tokenizer_xs` writes"
        )
    from moss.tokenizer.cat import CatTokenizer

    return CatTokenizer.load(config, config.weights, device)
