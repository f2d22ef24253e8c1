"""The tiny published tokenizer with its sound and codes; sizes, rates and ids all come from the fixture."""

from typing import Any

import pytest
from torch import Tensor

from moss.config.published_tokenizer import config_from_published
from moss.tokenizer.cat import CatModel, CatTokenizer
from moss.tokenizer.hf_map import load_state
from tests.parity.fixture_files import load_fixture
from tests.tokenizer.published import codes_from_public


@pytest.fixture(scope="session")
def fixture() -> dict[str, Any]:
    return load_fixture("ref_tokenizer.pt.gz")


@pytest.fixture(scope="session")
def model(fixture: dict[str, Any]) -> CatModel:
    model = CatModel(config_from_published(fixture["config"]))
    load_state(model, fixture["state_dict"], "fixture")
    return model.eval()


@pytest.fixture(scope="session")
def tokenizer(model: CatModel) -> CatTokenizer:
    return CatTokenizer(model)


@pytest.fixture(scope="session")
def wave(fixture: dict[str, Any]) -> Tensor:
    return fixture["audio"][0, 0]


@pytest.fixture(scope="session")
def codes(fixture: dict[str, Any]) -> Tensor:
    return codes_from_public(fixture["codes"])[0]
