"""From the tensors of files to the parameters of a model: strict, one at a time, adapters merged on the way."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from moss.config.model import ModelConfig
from moss.errors import CheckpointError
from moss.model.build import build_model
from moss.model.hf_map import tied_names
from moss.model.interface import Generator
from moss.model.lora import ALPHA_NAME, merge_state
from moss.model.parameters import published_name
from moss.model.safetensors_files import StoredTensor, StoredWeights, dtype_problems

_ADAPTERS, _BASE = (".lora_A.default.weight", ".lora_B.default.weight"), ".base_layer."


@contextmanager
def without_parameters() -> Iterator[None]:
    """Parameters of modules that are built in here have a shape, but no memory; buffers are real."""
    register = nn.Module.register_parameter

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        # One that is on meta already may be shared with another module and must stay the same object.
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's tensors, without making it."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build_model(config).state_dict().items()}


def load_tensors(
    model: Generator, weights: StoredWeights, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> None:
    """Fill a model, one tensor at a time; low-rank adapters in the files are merged into their weights.

    Args:
        model: Parameters without memory take the file's dtype, or `dtype`, on `device`; others keep their own.
        weights: The files.
        dtype: See model.
        device: See model.

    Raises:
        CheckpointError: See `check_weights`.
    """
    targets: dict[str, Tensor] = model.state_dict(keep_vars=True)
    tied = tied_names(model.config)
    adapters = _adapters(weights)
    check_weights(weights, {name: tuple(tensor.shape) for name, tensor in targets.items()}, tied)
    stored = _without_adapters(weights.tensors)
    made: dict[int, nn.Parameter] = {}
    for name, target in targets.items():
        if id(target) not in made:
            tensor = _read(stored[name] if name in stored else stored[tied[name]], adapters)
            if target.is_meta:
                made[id(target)] = nn.Parameter(tensor.to(device, dtype or tensor.dtype), target.requires_grad)
            else:
                with torch.no_grad():
                    target.copy_(tensor)
        if id(target) in made:
            module, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(module), leaf, made[id(target)])


def check_weights(weights: StoredWeights, expected: Mapping[str, tuple[int, ...]], tied: Mapping[str, str]) -> None:
    """Compare what files hold with what a model needs.

    Args:
        weights: The files.
        expected: Shape by name.
        tied: Names that may be missing -> the name whose tensor they must equal if they are there.

    Raises:
        CheckpointError: Lists every tensor that is missing, unexpected, misshapen, of another dtype or untied.
    """
    stored = _without_adapters(weights.tensors)
    shapes = {name: expected[source] for name, source in tied.items()} | dict(expected)
    problems = [f"missing {name}" for name in sorted(shapes.keys() - stored.keys() - tied.keys())]
    problems += [f"unexpected {name}" for name in sorted(stored.keys() - shapes.keys())]
    problems += [
        f"{name} has shape {stored[name].shape}, the model {shapes[name]}"
        for name in sorted(stored.keys() & shapes.keys())
        if stored[name].shape != shapes[name]
    ]
    _raise(weights, "weights of another model", problems)
    _raise(
        weights,
        "tensors of mixed or unsupported dtypes; export the checkpoint with one dtype for all",
        dtype_problems(stored),
    )
    problems = [
        f"{name} differs from {source}"
        for name, source in tied.items()
        if name in stored and not stored[name].equals(stored[source])
    ]
    _raise(weights, "tensors that must be the same are not; export the checkpoint again", problems)


def has_adapters(weights: StoredWeights) -> bool:
    """Whether the files are of a run with adapters that are not merged yet."""
    return ALPHA_NAME in weights.tensors


def _raise(weights: StoredWeights, what: str, problems: list[str]) -> None:
    if problems:
        raise CheckpointError(f"{weights.source}: {what}:\n  " + "\n  ".join(problems))


def _adapters(weights: StoredWeights) -> dict[str, Tensor]:
    """The adapters' own tensors by name; they are small."""
    if not has_adapters(weights):
        return {}
    return {
        name: tensor.read()
        for name, tensor in weights.tensors.items()
        if name == ALPHA_NAME or name.endswith(_ADAPTERS)
    }


def _without_adapters(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The model's own tensors under the names that they have without adapters around them."""
    if ALPHA_NAME not in stored:
        return dict(stored)
    own = [tensor for name, tensor in stored.items() if name != ALPHA_NAME and not name.endswith(_ADAPTERS)]
    # A weight inside an adapter keeps its stored name, by which its adapter is found.
    return {published_name(tensor.name): tensor for tensor in own}


def _read(stored: StoredTensor, adapters: Mapping[str, Tensor]) -> Tensor:
    tensor = stored.read()
    module = stored.name.removesuffix(f"{_BASE}weight")
    if not adapters or module == stored.name:
        return tensor
    halves = {name: adapter for name, adapter in adapters.items() if name.startswith(f"{module}.lora_")}
    merged = merge_state({stored.name: tensor, ALPHA_NAME: adapters[ALPHA_NAME], **halves})
    return merged[f"{module}.weight"]
