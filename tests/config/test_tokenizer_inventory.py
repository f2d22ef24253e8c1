"""Names and shapes of a Cat's tensors, and what they say about a file."""

from typing import Any

import pytest
import torch

from moss.config.load_tokenizer import load_tokenizer_config
from moss.config.tokenizer import CatConfig, TokenizerConfig
from moss.config.tokenizer_inventory import describe, preset_of, state_shapes, structure
from moss.tokenizer.cat import CatModel
from tests.parity.fixture_files import load_fixture
from tests.tokenizer.published import Generation, small_config

MANIFESTS = {"cat_full": "manifest_v1", "cat_v2": "manifest_v2", "cat_nano": "manifest_nano"}


def preset(name: str) -> CatConfig:
    config: TokenizerConfig = load_tokenizer_config(name)
    assert isinstance(config, CatConfig)
    return config


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    fixture: dict[str, Any] = load_fixture("ref_tokenizer.pt.gz")
    return {key: tuple(shape) for key, shape in fixture[MANIFESTS[name]].items()}


@pytest.mark.parametrize("name", [*MANIFESTS, "cat_xs"])
def test_the_formula_is_the_network(name: str) -> None:
    with torch.device("meta"):
        model = CatModel(preset(name))
    assert state_shapes(preset(name)) == {key: tuple(value.shape) for key, value in model.state_dict().items()}


@pytest.mark.parametrize("name", MANIFESTS)
def test_published_checkpoints_are_recognised(name: str) -> None:
    assert preset_of(manifest(name)) == name
    assert preset_of(state_shapes(preset(name))) == name
    known = {"cat_full": "24 kHz mono", "cat_v2": "48 kHz stereo", "cat_nano": "Nano"}[name]
    assert describe(manifest(name)).startswith(f"the published {known} tokenizer")
    without_one = dict(list(manifest(name).items())[1:])
    assert preset_of(without_one) is None


def test_other_networks_are_described_by_their_sizes() -> None:
    text = describe(state_shapes(small_config(Generation.v2)))
    assert text.startswith("a Cat of the v2 form (projections everywhere) with ")
    assert "encoder 2x16 2x16, decoder 2x16 2x16 (blocks x width), 4 codebooks" in text
    half = {key: shape for key, shape in state_shapes(small_config(Generation.v1)).items() if key[0] != "d"}
    assert describe(half).startswith("a Cat of the v1 form with ")
    assert "decoder absent" in describe(half)


def test_structure_overlooks_single_tensors_but_not_another_network() -> None:
    shapes = state_shapes(small_config(Generation.v1))
    damaged = dict(shapes)
    del damaged["quantizer.input_proj.bias"]
    damaged["encoder.1.transformer.layers.0.linear1.weight"] = (1, 1)
    damaged["encoder.9.typo"] = (3,)
    assert structure(damaged) == structure(shapes)
    assert structure(state_shapes(small_config(Generation.v2))) != structure(shapes)
    assert structure(state_shapes(preset("cat_xs"))) != structure(shapes)
