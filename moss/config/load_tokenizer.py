"""Tokenizer settings by name or file, for command lines that need nothing else of the configuration."""

from pathlib import Path

import yaml

from moss.config.schema import build
from moss.config.tokenizer import TokenizerConfig
from moss.errors import ConfigError

_FOLDER = Path(__file__).parents[2] / "configs" / "tokenizer"


def load_tokenizer_config(name: str, weights: Path | None = None) -> TokenizerConfig:
    """Read `configs/tokenizer/<name>.yaml`, a .yaml file, or take `name` as a kind with default settings.

    Args:
        name: Name, path ending in .yaml or .yml, or kind.
        weights: Replaces the weights that the settings name.

    Raises:
        ConfigError: No such name or file, not YAML, or settings that are wrong (all are listed).
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else _FOLDER / f"{name}.yaml"
    if path.is_file():
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: expected settings as `key: value` lines, got {type(values).__name__}")
        # The list of files to merge is Hydra's; the schema it names is the one used here.
        values.pop("defaults", None)
    elif name in TokenizerConfig.variants:
        values = {"kind": name}
    else:
        known = sorted({p.stem for p in _FOLDER.glob("*.yaml")} | set(TokenizerConfig.variants))
        raise ConfigError(f"no tokenizer {name!r}; expected one of {', '.join(known)}, or the path of a .yaml file")
    if weights is not None:
        values["weights"] = str(weights)
    return build(TokenizerConfig, values)
