"""Settings to tokenizer."""

from pathlib import Path

import pytest

from moss.config.schema import build
from moss.config.tokenizer import CatConfig, TokenizerConfig
from moss.errors import ConfigError
from moss.tokenizer.build import build_tokenizer
from moss.tokenizer.hf_map import write_weights
from tests.tokenizer.conftest import small_model, small_settings


def test_cat_is_built_from_its_weights(tmp_path: Path) -> None:
    model = small_model()
    write_weights(tmp_path / "w.safetensors", model)
    config = build(TokenizerConfig, small_settings() | {"weights": str(tmp_path / "w.safetensors")})
    assert build_tokenizer(config).spec.num_codebooks == 4


def test_cat_needs_weights() -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.weights: kind 'cat' ships no weights"):
        build_tokenizer(CatConfig())
