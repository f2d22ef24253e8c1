"""Low-rank adapters through PEFT, and merging them into ordinary weights.

A checkpoint of an adapted model holds the frozen weights, the adapters under PEFT's names and `lora_alpha`, all that
resuming and merging need. Whoever loads it for use gets the merged weights; `python -m moss.model.lora merge RUN OUT`
writes them as an ordinary checkpoint folder.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from moss.config.train import LoraConfig
from moss.errors import CheckpointError, ConfigError, MossError
from moss.model.parameters import parameters_matching, published_name

ALPHA_NAME = "lora_alpha"
"""The buffer that makes a state dict of adapters complete: their scale is alpha / rank."""

_PROJECTIONS = {
    "attention": r"self_attn\.[qkvo]_proj|attn\.c_attn|attn\.c_proj",
    "mlp": r"mlp\.(?:gate|up|down)_proj|mlp\.fc_(?:in|out)",
}
_ADAPTER = re.compile(r"(.+)\.lora_(A|B)\.default\.weight")


def apply_lora(model: nn.Module, config: LoraConfig) -> None:
    """Put adapters on the projections of backbone and depth blocks, and freeze all but them and `config.train`.

    Args:
        model: A generator, changed in place. Its outputs stay the same until the adapters are trained.
        config: Rank, scale, targets; rank 0 does nothing.

    Raises:
        ConfigError: PEFT is not installed, or a pattern of `train` matches no parameter, or a weight that gets an
            adapter.
    """
    if config.rank == 0:
        return
    try:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(f"lora.rank={config.rank} needs the package peft: pip install 'moss[lora]'") from error
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    in_full = [
        (pattern, name, parameter)
        for pattern in config.train
        for name, parameter in parameters_matching(model, pattern, "lora.train").items()
    ]
    blocks = "|".join(_PROJECTIONS[target] for target in config.targets)
    adapters = PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=rf".*\.(?:layers|h)\.\d+\.(?:{blocks})",
        bias="none",
    )
    inject_adapter_in_model(adapters, model)
    adapted = set()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_ADAPTER.fullmatch(name) is not None)
        if ".base_layer." in name:
            adapted.add(id(parameter))
    for pattern, name, parameter in in_full:
        if id(parameter) in adapted:
            raise ConfigError(f"lora.train: {pattern!r} matches {name}, which has an adapter; narrow the pattern")
        parameter.requires_grad_(id(parameter) in trainable)
    model.register_buffer(ALPHA_NAME, torch.tensor(config.alpha))


def has_adapters(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict holds adapters beside the weights."""
    return ALPHA_NAME in state


def merge_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the ordinary model whose outputs equal the adapted one's, under the published names.

    Args:
        state: Of an adapted model; one without adapters comes back as it is.

    Raises:
        CheckpointError: An adapter without its other half or without its weight; all are listed.
    """
    if not has_adapters(state):
        return dict(state)
    pairs: dict[str, dict[str, Tensor]] = {}
    merged = {}
    for name, tensor in state.items():
        if adapter := _ADAPTER.fullmatch(name):
            pairs.setdefault(adapter[1], {})[adapter[2]] = tensor
        elif name != ALPHA_NAME:
            merged[published_name(name)] = tensor
    missing = [
        name
        for module, halves in sorted(pairs.items())
        for name in [*(f"{module}.lora_{half}.default.weight" for half in "AB" if half not in halves)]
        + [f"{module}.base_layer.weight"] * (f"{module}.base_layer.weight" not in state)
    ]
    if missing:
        raise CheckpointError("adapters are incomplete, missing:\n  " + "\n  ".join(missing))
    for module, halves in pairs.items():
        weight = merged[f"{module}.weight"]
        scale = float(state[ALPHA_NAME]) / halves["A"].shape[0]
        update = scale * (halves["B"].float() @ halves["A"].float())
        merged[f"{module}.weight"] = (weight.float() + update).to(weight.dtype)
    return merged


def merge_checkpoint(source: Path, target: Path) -> None:
    """Write the merged weights of a LoRA run as an ordinary checkpoint folder.

    Args:
        source: A checkpoint folder, or a run folder whose newest checkpoint is taken.
        target: The new folder; it appears when it is whole.

    Raises:
        CheckpointError: There is no such checkpoint, it holds no adapters, or the target exists.
    """
    from moss.model.checkpoint import load_generator, save_generator
    from moss.model.safetensors_files import open_weights

    steps = sorted((source / "checkpoints").glob("step-*"))
    folder = steps[-1] if steps else source
    if ALPHA_NAME not in open_weights(folder).tensors:
        raise CheckpointError(f"{folder}: holds no adapters, so there is nothing to merge; use it as it is")
    model, card = load_generator(folder)
    save_generator(model, card, target, source=folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m moss.model.lora", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    merge = commands.add_parser("merge", help="write the merged weights as an ordinary checkpoint folder")
    merge.add_argument("source", type=Path, help="checkpoint folder or run folder")
    merge.add_argument("target", type=Path, help="folder to write")
    chosen = parser.parse_args(arguments)
    try:
        merge_checkpoint(chosen.source, chosen.target)
    except MossError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{chosen.target}: merged\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
