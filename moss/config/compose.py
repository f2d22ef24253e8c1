"""From the command line to a validated configuration: the only module that imports Hydra and OmegaConf.

Hydra chooses and merges the YAML files; this module applies the value overrides itself and hands everything to
`schema.check`, so that all mistakes of a command line come out together instead of one at a time. `+`, `++` and `~`
are refused: the schema already has every setting.
"""

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra import main as hydra_main
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from moss.command import run_command as run_main
from moss.config.schema import build, check, format_problems, to_plain
from moss.errors import ConfigError

T = TypeVar("T")

CONFIG_DIR = Path(__file__).parents[2] / "configs"
_REFUSED = {"+": "adds a key", "++": "forces a key", "~": "deletes a key"}
_SIGNS = ("++", "+", "~")


def load_config(root: type[T], config_name: str, overrides: Sequence[str] = (), config_dir: Path = CONFIG_DIR) -> T:
    """Compose, apply overrides, validate.

    Args:
        root: The root section, e.g. `TrainConfig`.
        config_name: The primary file, without `.yaml`.
        overrides: Command-line words: `group=name` or `dotted.key=value`.
        config_dir: Folder of the YAML files.

    Raises:
        ConfigError: Every mistake of the files and the overrides, each with its dotted path.
    """
    groups, values, problems, signed = _split(overrides, config_dir)
    merged = _compose(config_name, groups, config_dir)
    for override in values:
        _assign(merged, override.key_or_group, override.value(), problems)
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(merged), resolve=True)
    except OmegaConfBaseException as error:
        problems.append(str(error).splitlines()[0])
        resolved = merged
    assert isinstance(resolved, Mapping)
    problems += check(root, {str(key): value for key, value in resolved.items()})
    # A misspelt `+key` is one mistake, not two.
    problems += [text for key, text in signed.items() if not any(p.startswith(f"{key}:") for p in problems)]
    if problems:
        raise ConfigError(format_problems(problems))
    return build(root, {str(key): value for key, value in resolved.items()})


def to_yaml(config: Any) -> str:
    """A configuration as YAML, every value written out."""
    return OmegaConf.to_yaml(OmegaConf.create(to_plain(config)))


def from_yaml(root: type[T], path: Path) -> T:
    """Read a configuration that `to_yaml` wrote.

    Raises:
        ConfigError: The file does not fit the schema.
    """
    content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    try:
        assert isinstance(content, Mapping)
        return build(root, {str(key): value for key, value in content.items()})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def run_command(root: type[T], config_name: str, run: Callable[[T], None], argv: Sequence[str] | None = None) -> int:
    """Entry point of a Hydra-configured program; returns the exit status.

    Understands `--help`, `--cfg job` and `-m`/`--multirun`; it ends like every command, see `moss.command`.
    """

    def main(words: Sequence[str]) -> int:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
        if "--help" in words or "-h" in words:
            sys.stdout.write(_help(config_name, root))
            return 0
        if "-m" in words or "--multirun" in words:
            return _multirun(root, config_name, run, [word for word in words if word not in ("-m", "--multirun")])
        show = "--cfg" in words or "-c" in words
        overrides = [word for word in words if not _is_flag(word, words)]
        config = load_config(root, config_name, overrides)
        if show:
            sys.stdout.write(to_yaml(config))
        else:
            run(config)
        return 0

    return run_main(main, argv)


def _is_flag(word: str, words: Sequence[str]) -> bool:
    """Whether a word belongs to `--cfg job` rather than to the overrides."""
    if word in ("--cfg", "-c", "--resolve"):
        return True
    position = words.index(word)
    return word in ("job", "all") and position > 0 and words[position - 1] in ("--cfg", "-c")


def _split(overrides: Sequence[str], config_dir: Path) -> tuple[list[str], list[Override], list[str], dict[str, str]]:
    """Sort command-line words into group choices and values; collect what cannot be either and what has a sign."""
    groups: list[str] = []
    values: list[Override] = []
    problems: list[str] = []
    signed: dict[str, str] = {}
    parser = OverridesParser.create()
    for word in overrides:
        sign = next((sign for sign in _SIGNS if word.startswith(sign)), "")
        try:
            override = parser.parse_override(word[len(sign) :] if sign != "~" else f"{word[1:].split('=')[0]}=null")
        except (OverrideParseException, HydraException):
            problems.append(f"{word}: cannot be read; write group=name or dotted.key=value")
            continue
        key = override.key_or_group
        folder = config_dir / key.replace(".", "/")
        if override.is_sweep_override():
            problems.append(f"{key}: {word.split('=', 1)[1]} is several values; one job for each needs --multirun")
            continue
        if sign:
            signed[key] = _refusal(sign, key)
            if sign == "~" or folder.is_dir():
                continue
        if folder.is_dir() and "." not in key:
            _choose_group(override, folder, groups, problems)
        else:
            values.append(override)
    return groups, values, problems, signed


def _refusal(sign: str, key: str) -> str:
    return f"{key}: {sign}{key} {_REFUSED[sign]}; every setting exists already, write {key}=..."


def _choose_group(override: Override, folder: Path, groups: list[str], problems: list[str]) -> None:
    name = str(override.value())
    if (folder / f"{name}.yaml").is_file() or override.value() is None:
        groups.append(f"{override.key_or_group}={name if override.value() is not None else 'null'}")
        return
    available = sorted(path.stem for path in folder.glob("*.yaml"))
    near = get_close_matches(name, available, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if override.key_or_group == "tokenizer" and ("/" in name or os.sep in name or Path(name).is_dir()):
        hint = "; a checkpoint folder goes into tokenizer.weights=... or, in evaluate.py, tokenizers=[...]"
    problems.append(f"{override.key_or_group}: there is no {name!r}; available: {', '.join(available)}{hint}")


def _compose(config_name: str, groups: Sequence[str], config_dir: Path) -> dict[str, Any]:
    # Inside a job of a sweep Hydra is at work already, and it composes for one caller at a time.
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(config_dir), version_base="1.3"):
            composed = compose(config_name=config_name, overrides=list(groups))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{config_dir}/{config_name}.yaml: {str(error).strip()}") from error
    finally:
        GlobalHydra.instance().hydra = outer
    content = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _assign(target: dict[str, Any], dotted: str, value: Any, problems: list[str]) -> None:
    *parents, last = dotted.split(".")
    node: Any = target
    for name in parents:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            problems.append(f"{dotted}: {name} is a value, not a group of settings")
            return
    node[last] = value


def _multirun(root: type[T], config_name: str, run: Callable[[T], None], words: Sequence[str]) -> int:
    """Hand a sweep to Hydra's sweeper and launcher; each job is composed and validated like a single run."""
    hydra_words = [word for word in words if word.startswith("hydra")]
    overrides = [word for word in words if not word.startswith("hydra")]
    problems: list[str] = []
    for word in overrides:
        sign = next((sign for sign in _SIGNS if word.startswith(sign)), "")
        key = word[len(sign) :].split("=")[0]
        if sign:
            problems.append(_refusal(sign, key))
        elif "=" not in word:
            problems.append(f"{word}: cannot be read; write group=name or dotted.key=value")
    if problems:
        raise ConfigError(format_problems(problems))

    def job(_: Any) -> None:
        chosen = [word.removeprefix("++") for word in HydraConfig.get().overrides.task]
        run(load_config(root, config_name, chosen))

    is_group = {word: (CONFIG_DIR / word.split("=")[0]).is_dir() for word in overrides}
    # `++` lets Hydra pass on settings that only the dataclasses know; load_config checks them in the job.
    forced = [word if is_group[word] else f"++{word}" for word in overrides]
    # Hydra then passes a job's error on, instead of printing its traceback and leaving.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    saved, sys.argv = sys.argv, [sys.argv[0], "--multirun", *hydra_words, *forced]
    try:
        hydra_main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(job)()
    finally:
        sys.argv = saved
    return 0


def _help(config_name: str, root: type) -> str:
    program = Path(sys.argv[0]).name
    lines = [
        f"usage: python {program} [group=name ...] [dotted.key=value ...] [--cfg job] [-m]",
        "",
        f"{(root.__doc__ or '').splitlines()[0]}",
        "",
        "  --cfg job       print the whole resolved configuration and stop",
        "  -m, --multirun  one job for each combination of comma-separated values",
        "",
        "groups (configs/<group>/<name>.yaml):",
    ]
    for folder in sorted(path for path in CONFIG_DIR.iterdir() if path.is_dir()):
        names = sorted(path.stem for path in folder.glob("*.yaml"))
        if names:
            lines.append(f"  {folder.name}: {', '.join(names)}")
    lines += ["", f"example: python {program} --cfg job   (defaults of configs/{config_name}.yaml)", ""]
    return "\n".join(lines)
