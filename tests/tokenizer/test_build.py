"""Settings to tokenizer."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from moss.config.load_tokenizer import load_tokenizer_config
from moss.config.schema import build, to_plain
from moss.config.tokenizer import CatConfig, ComputeDtype, Part, TokenizerConfig
from moss.errors import CheckpointError, ConfigError
from moss.tokenizer.build import build_tokenizer, weights_path
from moss.tokenizer.cat import CatTokenizer
from moss.tokenizer.hf_map import write_weights
from tests.tokenizer.conftest import small_model, small_settings
from tests.tokenizer.published import Generation, write_folder

GENERATIONS = list(Generation)


def built(config: TokenizerConfig) -> CatTokenizer:
    made = build_tokenizer(config)
    assert isinstance(made, CatTokenizer)
    return made


def test_cat_is_built_from_its_weights(tmp_path: Path) -> None:
    model = small_model()
    write_weights(tmp_path / "w.safetensors", model)
    config = build(TokenizerConfig, small_settings() | {"weights": str(tmp_path / "w.safetensors")})
    assert build_tokenizer(config).spec.num_codebooks == 4


def test_cat_needs_weights() -> None:
    with pytest.raises(
        ConfigError, match=r"tokenizer\.weights: these settings have no shipped weights; .*cat_embedded has weights"
    ):
        build_tokenizer(CatConfig())


def test_shipped_weights_that_are_not_there_are_named() -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.shipped: no weights 'gone' in .*weights, only .*mel_rvq"):
        build_tokenizer(CatConfig(shipped="gone"))


def test_the_embedded_cat_comes_with_its_weights() -> None:
    config = load_tokenizer_config("cat_embedded")
    assert isinstance(config, CatConfig)
    tokenizer = built(config)
    card = weights_path(config).with_suffix(".md").read_text(encoding="utf-8")
    assert re.findall(r"^\| fingerprint \| `(.*)` \|$", card, re.MULTILINE) == [tokenizer.fingerprint]
    assert tokenizer.spec.sampling_rate_hz == 16_000
    assert tokenizer.model.config.weights is not None
    wave = 0.1 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    (codes,) = tokenizer.encode([wave])
    assert codes.shape == (tokenizer.spec.num_frames(20_000), tokenizer.spec.num_codebooks)
    assert tokenizer.decode([codes], [20_000])[0].shape == (20_000,)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_published_folder_decides_the_geometry(tmp_path: Path, generation: Generation) -> None:
    config, state = write_folder(tmp_path / "f", generation)
    left_open = CatConfig(weights=tmp_path / "f", compute_dtype=ComputeDtype.fp32)
    tokenizer = built(left_open)
    assert tokenizer.model.config.geometry() == config.geometry()
    assert tokenizer.spec.num_audio_channels == (2 if generation is Generation.v2 else 1)
    assert all(torch.equal(value, state[key]) for key, value in tokenizer.model.state_dict().items())
    same = dataclasses.replace(config, weights=tmp_path / "f")
    assert built(same).fingerprint == tokenizer.fingerprint


def test_settings_that_contradict_the_folder_name_both(tmp_path: Path) -> None:
    config, _ = write_folder(tmp_path / "f", Generation.v1)
    settings = to_plain(config) | {"weights": str(tmp_path / "f")}
    settings["encoder"][1]["context_s"] = 0.3
    settings["decoder"] = None
    with pytest.raises(ConfigError) as caught:
        build_tokenizer(build(TokenizerConfig, settings))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{tmp_path / 'f'}: holds a Cat of the v1 form with ")
    instead = f"--tokenizer {tmp_path / 'f'}, in evaluate.py tokenizers=[{tmp_path / 'f'}]"
    assert lines[0].endswith(f"; use its own settings, or the folder in place of a name: {instead}")
    card = tmp_path / "f" / "config.json"
    assert lines[1:] == [
        f"  encoder[1].context_s: the settings say 0.3, {card} says 0.2",
        f"  decoder[2].context_s: the settings say 0.3, {card} says 0.2",
    ]


def test_another_preset_than_the_folders(tmp_path: Path) -> None:
    write_folder(tmp_path / "f", Generation.v2)
    settings = small_settings() | {"weights": str(tmp_path / "f")}
    with pytest.raises(ConfigError) as caught:
        build_tokenizer(build(TokenizerConfig, settings))
    text = str(caught.value)
    assert "holds a Cat of the v2 form (projections everywhere)" in text
    assert "the settings describe a Cat of the v1 form" in text
    assert "num_audio_channels: the settings say 1, " in text


def test_our_checkpoint_folder_decides_too(tmp_path: Path) -> None:
    config = build(CatConfig, small_settings())
    write_weights(tmp_path / "model.safetensors", small_model(2))
    card = {"kind": "tokenizer", "step": 7, "tokenizer_config": to_plain(config)}
    (tmp_path / "moss.json").write_text(json.dumps(card))
    tokenizer = built(CatConfig(weights=tmp_path))
    assert tokenizer.model.config.geometry() == config.geometry()
    settings = small_settings() | {"sampling_rate_hz": 16_000, "weights": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"sampling_rate_hz: the settings say 16000, .*moss.json says 24000"):
        build_tokenizer(build(TokenizerConfig, settings))


def test_a_generators_checkpoint_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "moss.json").write_text(json.dumps({"architecture": "delay", "tokenizer_config": {"kind": "cat"}}))
    with pytest.raises(CheckpointError, match=r"moss.json: not a tokenizer's checkpoint; expected kind 'tokenizer'"):
        build_tokenizer(CatConfig(weights=tmp_path))


def test_a_folder_that_says_nothing_is_read_with_the_settings(tmp_path: Path) -> None:
    write_weights(tmp_path / "model.safetensors", small_model())
    config = build(CatConfig, small_settings() | {"weights": str(tmp_path)})
    assert built(config).spec.num_codebooks == 4
    with pytest.raises(
        CheckpointError, match="it holds a Cat of the v1 form .* the settings describe the published 24"
    ):
        build_tokenizer(CatConfig(weights=tmp_path))


@pytest.mark.parametrize("part", [Part.encoder, Part.decoder])
def test_half_of_a_published_folder(tmp_path: Path, part: Part) -> None:
    config, _ = write_folder(tmp_path / "f", Generation.v1)
    whole = built(dataclasses.replace(config, weights=tmp_path / "f"))
    half = built(CatConfig(weights=tmp_path / "f", part=part))
    assert {key.split(".")[0] for key in half.model.state_dict()} == {part.value, "quantizer"}
    wave = torch.randn(1000, generator=torch.Generator().manual_seed(1)) * 0.1
    codes = whole.encode([wave])
    if part is Part.encoder:
        assert torch.equal(half.encode([wave])[0], codes[0])
    else:
        assert torch.equal(half.decode(codes)[0], whole.decode(codes)[0])
