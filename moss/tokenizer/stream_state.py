"""States of streams through an encoder or decoder: fresh, joined into a batch and parted again, and as plain tensors.

Nothing here changes a state that it is given; only a pass through the network does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor, nn

from moss.tokenizer.transformer import Block, Patch, StageState, Transformer


def new_stream(stack: nn.ModuleList, *, published_ring: bool = False) -> list[StageState]:
    """Fresh state for one stream, or for a batch of streams, through an encoder or decoder."""
    return [StageState(published_ring=published_ring) for _ in stack]


def copied(stages: list[StageState]) -> list[StageState]:
    """A state that a pass may advance while `stages` stays as it is; the tensors are shared."""
    return [
        replace(stage, keys=list(stage.keys), values=list(stage.values), rooms=list(stage.rooms)) for stage in stages
    ]


def positions_per_frame(stack: nn.ModuleList, positions: int) -> list[int]:
    """How many positions a frame has when it enters each stage, and when it leaves the last.

    Args:
        stack: An encoder or a decoder.
        positions: Of a frame at the entrance: its samples for an encoder, 1 for a decoder.
    """
    counts = [positions]
    for stage in stack:
        if isinstance(stage, Patch):
            positions = positions * stage.patch_size if stage.unfold else positions // stage.patch_size
        counts.append(positions)
    return counts


def join(stack: nn.ModuleList, streams: Sequence[list[StageState]]) -> list[StageState]:
    """One state of a batch out of states of one stream each, whatever their positions."""
    return [_join_stage([stages[i] for stages in streams]) for i in range(len(stack))]


def part(stack: nn.ModuleList, joined: list[StageState], item: int) -> list[StageState]:
    """The state of one stream of a batch."""
    return [_part_stage(stage, state, item) for stage, state in zip(stack, joined, strict=True)]


def to_tensors(stages: list[StageState]) -> dict[str, Tensor]:
    """Keys and values of one stream as contiguous tensors of their own on the CPU, by name."""
    tensors = {}
    for i, stage in enumerate(stages):
        for layer, (keys, values) in enumerate(zip(stage.keys, stage.values, strict=True)):
            tensors[f"keys.{i}.{layer}"] = _own(keys)
            tensors[f"values.{i}.{layer}"] = _own(values)
    return tensors


def from_tensors(
    stack: nn.ModuleList, tensors: dict[str, Tensor], positions: Sequence[int], *, published_ring: bool
) -> list[StageState]:
    """The inverse of `to_tensors` for tensors that have the `expected_shapes`; `positions` has one entry per stage."""
    stages = new_stream(stack, published_ring=published_ring)
    for i, (stage, module) in enumerate(zip(stages, stack, strict=True)):
        if not isinstance(module, Transformer) or positions[i] == 0:
            continue
        stage.position = positions[i]
        device = next(module.parameters()).device
        for layer in range(len(module.transformer.layers)):
            stage.keys.append(tensors[f"keys.{i}.{layer}"].to(device, copy=True))
            stage.values.append(tensors[f"values.{i}.{layer}"].to(device, copy=True))
    return stages


def expected_shapes(
    stack: nn.ModuleList, positions: Sequence[int], *, published_ring: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes that `to_tensors` gives a stream that stands at `positions`, one entry per stage."""
    for i, module in enumerate(stack):
        if isinstance(module, Transformer) and positions[i] > 0:
            cached = StageState(position=positions[i], published_ring=published_ring).num_cached(module.context)
            for layer, block in enumerate(module.transformer.layers):
                assert isinstance(block, Block)
                shape = (1, block.self_attn.num_heads, cached, module.head_size)
                yield f"keys.{i}.{layer}", shape
                yield f"values.{i}.{layer}", shape


def _join_stage(states: list[StageState]) -> StageState:
    position = max(state.position for state in states)
    behind = [position - state.position for state in states]
    furthest = states[behind.index(0)]
    return StageState(
        position=position,
        keys=[_stack([state.keys for state in states], i) for i in range(len(furthest.keys))],
        values=[_stack([state.values for state in states], i) for i in range(len(furthest.values))],
        behind=behind if any(behind) else None,
    )


def _stack(tensors: list[list[Tensor]], layer: int) -> Tensor:
    """The layer's tensors over each other, zeros before those that hold less; a stream at its start holds none."""
    held = [items[layer] if items else None for items in tensors]
    longest = max((item for item in held if item is not None), key=lambda item: item.shape[2])
    joined = longest.new_zeros(len(held), *longest.shape[1:])
    for row, item in zip(joined, held, strict=True):
        if item is not None:
            row[:, joined.shape[2] - item.shape[2] :] = item[0]
    return joined


def _part_stage(stage: nn.Module, state: StageState, item: int) -> StageState:
    if not isinstance(stage, Transformer):
        return StageState()
    filling = state.filling(stage.context)
    first = filling[item] if filling is not None else 0
    behind = state.behind[item] if state.behind is not None else 0
    position = state.position - behind
    return StageState(
        position=position,
        keys=[keys[item : item + 1, :, first:].clone() for keys in state.keys] if position else [],
        values=[values[item : item + 1, :, first:].clone() for values in state.values] if position else [],
    )


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
