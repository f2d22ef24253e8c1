"""Weights of Cat checkpoints: state-dict names of three generations, lazy reading, and strict loading.

The network uses the names of the 24 kHz checkpoint. Older and newer names are translated on reading.
Source: state dicts of MOSS-Audio-Tokenizer @56df9ee, MOSS-Audio-Tokenizer-v2 and MOSS-Audio-Tokenizer-Nano.
"""

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from moss.config.load_tokenizer import INDEX_FILE, WEIGHTS_FILE
from moss.config.tokenizer import CatConfig
from moss.config.tokenizer_inventory import Shapes, describe, preset_of, state_shapes, structure
from moss.errors import CheckpointError

if TYPE_CHECKING:
    from moss.tokenizer.cat import CatModel

LISTED_KEYS = 20
"""How many keys of a kind an error spells out."""

_TO_CANONICAL = (
    (re.compile(r"\.self_attn\.(in|out)_proj(?:_|\.)weight$"), r".self_attn.\1_projs.0.weight"),
    (re.compile(r"\.ffn\.0\.weight$"), ".linear1.weight"),
    (re.compile(r"\.ffn\.2\.weight$"), ".linear2.weight"),
    (re.compile(r"\.weight_g$"), ".parametrizations.weight.original0"),
    (re.compile(r"\.weight_v$"), ".parametrizations.weight.original1"),
)
_TO_48KHZ = (
    (re.compile(r"\.self_attn\.(in|out)_projs\.0\.weight$"), r".self_attn.\1_proj.weight"),
    (re.compile(r"\.linear1\.weight$"), ".ffn.0.weight"),
    (re.compile(r"\.linear2\.weight$"), ".ffn.2.weight"),
)


def canonical_key(key: str) -> str:
    """A state-dict name of any generation as the 24 kHz checkpoint spells it."""
    for pattern, replacement in _TO_CANONICAL:
        key = pattern.sub(replacement, key)
    return key


def key_48khz(key: str) -> str:
    """A canonical state-dict name as the 48 kHz and Nano checkpoints spell it."""
    for pattern, replacement in _TO_48KHZ:
        key = pattern.sub(replacement, key)
    return key


class StoredState(Mapping[str, Tensor]):
    """The tensors of a safetensors file, or of a folder with one or with shards; each is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Open the files and read their headers.

        Raises:
            CheckpointError: A file is missing, is not safetensors, or holds a tensor that another one holds too.
        """
        from safetensors import SafetensorError, safe_open

        self.files = _weight_files(path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._opened: dict[str, Any] = {}
        for file in self.files:
            if not file.is_file():
                raise CheckpointError(
                    f"{file}: no such file; a tokenizer's weights are a safetensors file or its folder"
                )
            try:
                opened = safe_open(file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{file}: not a safetensors file ({error}); fetch or export it again") from error
            for key in opened.keys():  # noqa: SIM118
                if key in self._opened:
                    raise CheckpointError(f"{file}: {key} is in another shard too; fetch the checkpoint again")
                self._opened[key] = opened
                self.shapes[key] = tuple(opened.get_slice(key).get_shape())

    def __getitem__(self, key: str) -> Tensor:
        """Read one tensor."""
        tensor: Tensor = self._opened[key].get_tensor(key)
        return tensor

    def __iter__(self) -> Iterator[str]:
        """Names, file by file."""
        return iter(self._opened)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._opened)


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """Shape of every tensor; nothing is read for it."""
    if isinstance(state, StoredState):
        return state.shapes
    return {key: tuple(value.shape) for key, value in state.items()}


def match_keys(given: Shapes, config: CatConfig, source: str, needed: Collection[str] | None = None) -> dict[str, str]:
    """Where each tensor of a Cat is in a file: canonical name to the file's name.

    Args:
        given: The file's names, of any generation, and shapes.
        config: The network.
        source: Named in errors.
        needed: Canonical names without which it is refused; null for all, a half where the other one is not built.

    Raises:
        CheckpointError: Says what the file is where it is another network, and lists keys that are missing, unknown,
            given twice, or of another shape.
    """
    expected = state_shapes(config)
    problems: dict[str, list[str]] = {"given twice": [], "missing": [], "unknown": [], "of another shape": []}
    places: dict[str, str] = {}
    for key, shape in given.items():
        name = canonical_key(key)
        if name in places:
            problems["given twice"].append(f"{name} (again as {key})")
        elif name not in expected:
            problems["unknown"].append(key)
        elif shape != expected[name]:
            problems["of another shape"].append(f"{name} expected {expected[name]}, got {shape}")
        places[name] = key
    problems["missing"] = [name for name in (expected if needed is None else needed) if name not in places]
    if any(problems.values()):
        lines = [f"{source}: not the weights of this tokenizer{_other_network(given, expected)}"]
        lines += [_listing(what, keys) for what, keys in problems.items() if keys]
        raise CheckpointError("\n".join(lines))
    return places


def load_state(model: "CatModel", state: Mapping[str, Tensor], source: str) -> None:
    """Load weights strictly, in the model's own dtype; legacy names are translated.

    Of a `StoredState` only the tensors that the model has are read, one at a time.

    Raises:
        CheckpointError: See `match_keys`; or a tensor is not of floating point.
    """
    wanted = model.state_dict()
    places = match_keys(shapes_of(state), model.config, source, wanted.keys())
    with torch.no_grad():
        for name, target in wanted.items():
            tensor = state[places[name]]
            if not tensor.is_floating_point():
                raise CheckpointError(f"{source}: {places[name]} is {tensor.dtype}; expected floating point")
            target.copy_(tensor)


def read_weights(path: Path) -> StoredState:
    """The tensors of a safetensors file, or of a folder with `model.safetensors` or a sharded index, to be read lazily.

    Raises:
        CheckpointError: Nothing readable there.
    """
    return StoredState(path)


def write_weights(path: Path, model: nn.Module) -> None:
    """Write the state dict as safetensors, atomically."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(state, temporary, metadata={"format": "pt"})
    os.replace(temporary, path)


def _other_network(given: Shapes, expected: Shapes) -> str:
    """What a file is, where it is not the network that the settings describe with some tensors gone or changed."""
    canonical = {canonical_key(key): shape for key, shape in given.items()}
    if structure(canonical) == structure(expected):
        return "; check that the tokenizer settings fit the file"
    preset = preset_of(canonical)
    remedy = "the settings it was trained with" if preset is None else f"tokenizer={preset}"
    return f": it holds {describe(canonical)}, the settings describe {describe(expected)}; use {remedy}"


def _weight_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    index = path / INDEX_FILE
    if not index.is_file():
        return [path / WEIGHTS_FILE]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index}: no readable weight_map ({error!r}); fetch the checkpoint again") from error
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CheckpointError(f"{index}: shards must lie beside the index, got {outside[0]!r}")
    return [path / name for name in names]


def _listing(what: str, keys: list[str]) -> str:
    shown = "\n".join(f"    {key}" for key in keys[:LISTED_KEYS])
    rest = f"\n    and {len(keys) - LISTED_KEYS} more" if len(keys) > LISTED_KEYS else ""
    return f"  {len(keys)} {what}:\n{shown}{rest}"
