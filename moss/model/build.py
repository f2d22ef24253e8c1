"""ModelConfig -> model: the only dispatch on architecture."""

from moss.config.model import DelayModelConfig, ModelConfig
from moss.errors import ConfigError
from moss.model.delay import DelayModel


def build_model(config: ModelConfig) -> DelayModel:
    """A generator with fresh weights.

    Raises:
        ConfigError: An architecture without an implementation.
    """
    if isinstance(config, DelayModelConfig):
        return DelayModel(config)
    raise ConfigError(f"model.architecture: {config.architecture!r} has no implementation")
