"""Parameters by shell-style patterns of their names, as several settings of a training run give them."""

from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from moss.errors import ConfigError


def published_name(name: str) -> str:
    """The name that a parameter has without adapters around it."""
    return name.replace(".base_layer.", ".")


def parameters_matching(model: nn.Module, pattern: str, setting: str) -> dict[str, nn.Parameter]:
    """The parameters that a pattern names, in the model's order, each under its first name.

    `*` matches dots too. A tied parameter is found under each of its names, a weight inside an adapter under the name
    that it has without.

    Args:
        model: Where to look.
        pattern: Shell style.
        setting: The setting's dotted path, for the message.

    Raises:
        ConfigError: No parameter matches; near names are listed.
    """
    first_names: dict[int, str] = {}
    found: dict[str, nn.Parameter] = {}
    names = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.append(published_name(name))
        first = first_names.setdefault(id(parameter), name)
        if fnmatchcase(names[-1], pattern):
            found[first] = parameter
    if not found:
        near = get_close_matches(pattern, names, n=3, cutoff=0.0)
        raise ConfigError(f"{setting}: {pattern!r} matches no parameter; near names: {', '.join(near)}")
    return found
