"""Architecture -> class, with the published parameter names."""

import pytest

from moss.config.model import ModelConfig
from moss.errors import ConfigError
from moss.model.build import build_model
from moss.model.delay import DelayModel
from moss.model.local import LocalModel
from moss.model.local_v15 import LocalV15Model
from moss.model.realtime import RealtimeModel
from tests.model.toys import CONFIGS

CLASSES = {"delay": DelayModel, "local": LocalModel, "local_v15": LocalV15Model, "realtime": RealtimeModel}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_each_architecture_has_its_class(name: str) -> None:
    model = build_model(CONFIGS[name])
    assert model.num_channels == 4
    assert model.backbone.config.hidden_size == 32
    assert set(CLASSES) == set(ModelConfig.variants)
    assert type(model) is CLASSES[name]


def test_an_unknown_architecture_is_an_error() -> None:
    with pytest.raises(ConfigError, match="model.architecture: 'other' has no implementation"):
        build_model(ModelConfig(architecture="other"))
