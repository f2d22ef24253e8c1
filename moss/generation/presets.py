"""The settings of one call: the recommended ones of the model, with what the caller changes."""

from typing import Any

from moss.config.generation import GenerationConfig, recommended
from moss.config.model import DEPTH_ARCHITECTURES, ModelConfig
from moss.config.schema import build, to_plain
from moss.errors import GenerationError

_SAMPLER = ("temperature", "top_k", "top_p", "repetition_penalty", "penalty_window")
_TEXT_SAMPLER = ("temperature", "top_k", "top_p")
"""No loop penalises text."""
_NAMES = {name: ("audio", name) for name in _SAMPLER} | {f"text_{name}": ("text", name) for name in _TEXT_SAMPLER}
_TOP = (
    "max_frames",
    "batch_size",
    "compatibility",
    "num_codebooks",
    "codebooks",
    "runaway_repeats",
    "attention",
    "offload",
)
OVERRIDES = (*_NAMES, *_TOP)
"""What a call may change; plain sampler names are those of the codebooks, `text_...` those of the text channel."""


def preset(model: ModelConfig) -> GenerationConfig:
    """The published settings of a model's architecture and member."""
    return recommended(model.architecture, model.member.value)


def with_overrides(base: GenerationConfig, model: ModelConfig, **overrides: Any) -> GenerationConfig:
    """Change some settings; None leaves the base's value.

    Args:
        base: Where to start.
        model: What they are for.
        overrides: Names of `OVERRIDES`.

    Raises:
        GenerationError: An unknown name, or a setting that the architecture does not have.
        ConfigError: A value of the wrong type or out of range.
    """
    values = to_plain(base)
    for name, value in overrides.items():
        if value is None:
            continue
        if name.startswith("text_") and name in _NAMES and model.architecture == "realtime":
            raise GenerationError(f"{name}: a Realtime model is given its text and draws none; leave it out")
        if name in _NAMES:
            kind, field = _NAMES[name]
            values[kind][field] = value
        elif name in _TOP:
            values[name] = to_plain(value)
        else:
            raise GenerationError(f"unknown setting {name!r}; expected one of {', '.join(OVERRIDES)}")
    config = build(GenerationConfig, values)
    check_codebooks(config, model)
    return config


def check_codebooks(config: GenerationConfig, model: ModelConfig) -> None:
    """Refuse to speak fewer codebooks where the model cannot, or more than it has.

    Raises:
        GenerationError: Names both numbers.
    """
    wanted = config.num_codebooks
    if wanted is None or wanted == model.num_codebooks:
        return
    if wanted > model.num_codebooks:
        raise GenerationError(f"num_codebooks={wanted}: the model has {model.num_codebooks}; ask for at most that many")
    if model.architecture not in DEPTH_ARCHITECTURES:
        raise GenerationError(
            f"num_codebooks={wanted}: architecture {model.architecture!r} speaks all its {model.num_codebooks} "
            "codebooks at once; leave it out"
        )
