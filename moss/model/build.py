"""ModelConfig -> model: the only dispatch on architecture."""

from moss.config.model import DelayModelConfig, LocalModelConfig, LocalV15ModelConfig, ModelConfig, RealtimeModelConfig
from moss.errors import ConfigError
from moss.model.delay import DelayModel
from moss.model.interface import Generator
from moss.model.local import LocalModel
from moss.model.local_v15 import LocalV15Model
from moss.model.realtime import RealtimeModel


def build_model(config: ModelConfig) -> Generator:
    """A generator with fresh weights.

    Raises:
        ConfigError: An architecture without an implementation.
    """
    # Local's settings extend Delay's, so they come first.
    if isinstance(config, LocalModelConfig):
        return LocalModel(config)
    if isinstance(config, DelayModelConfig):
        return DelayModel(config)
    if isinstance(config, LocalV15ModelConfig):
        return LocalV15Model(config)
    if isinstance(config, RealtimeModelConfig):
        return RealtimeModel(config)
    raise ConfigError(f"model.architecture: {config.architecture!r} has no implementation")
