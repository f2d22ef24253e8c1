from pathlib import Path

import pytest

from moss.config.load_tokenizer import load_tokenizer_config
from moss.config.tokenizer import CatConfig, MelRvqConfig
from moss.errors import ConfigError


def test_by_kind_by_name_and_by_file(tmp_path):
    assert load_tokenizer_config("mel_rvq") == MelRvqConfig()
    small = load_tokenizer_config("cat_xs")
    assert isinstance(small, CatConfig)
    assert small.quantizer.num_codebooks == 8
    path = tmp_path / "mine.yaml"
    path.write_text("defaults: [something]\nkind: mel_rvq\ngriffin_lim_iterations: 5\n")
    assert load_tokenizer_config(str(path), Path("w.safetensors")) == MelRvqConfig(
        griffin_lim_iterations=5, weights=Path("w.safetensors")
    )


def test_every_mistake_is_a_config_error(tmp_path):
    with pytest.raises(
        ConfigError, match=r"no tokenizer 'mel'; expected one of .*cat_xs.*mel_rvq.*or the path of a \.yaml"
    ):
        load_tokenizer_config("mel")
    path = tmp_path / "bad.yaml"
    path.write_text("- a\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml: expected settings as `key: value` lines, got list"):
        load_tokenizer_config(str(path))
    path.write_text("a: [\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml: not YAML: "):
        load_tokenizer_config(str(path))
    path.write_text("kind: mel_rvq\ngriffin_lim_iteration: 5\n")
    with pytest.raises(ConfigError, match="griffin_lim_iteration"):
        load_tokenizer_config(str(path))
