"""What the incremental decoder computes with: the backbone's own weights, on the device or waiting in main memory.

Projections that read the same input become views of one tensor, so that one matrix product serves them and no weight
exists twice.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from moss.config.generation import Offload
from moss.errors import GenerationError
from moss.model.packed import PackedWeight, worth_packing


class LayerWeights(NamedTuple):
    """What one decoder block computes with; `query_key_norm` is (query and key heads, head_dim)."""

    input_norm: Tensor
    query_key_value: Tensor
    query_key_norm: Tensor
    attention_out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


def joined(parameters: Sequence[Tensor], *, pinned: bool = False) -> Tensor:
    """One matrix whose rows are those of the parameters in order; the parameters become views of it.

    A second call finds everything in place and copies nothing.

    Args:
        parameters: Matrices of equal width, dtype and device.
        pinned: Let the matrix lie in pinned memory if it is in main memory.

    Returns:
        Shape (rows of all, width).
    """
    first = parameters[0]
    rows, width = sum(len(parameter) for parameter in parameters), first.shape[1]
    address, in_place = first.data_ptr(), True
    for parameter in parameters:
        same = parameter.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        in_place &= same and parameter.is_contiguous() and parameter.data_ptr() == address
        address += parameter.numel() * parameter.element_size()
    # Parameters must not become inference tensors: training may go on with them.
    with torch.inference_mode(False), torch.no_grad():
        if in_place:
            whole = first.detach().as_strided((rows, width), (width, 1))
            if not (pinned and _can_be_pinned(whole)):
                return whole
        else:
            whole = torch.cat([parameter.detach() for parameter in parameters])
        if pinned and _can_be_pinned(whole):
            whole = whole.pin_memory()
        start = 0
        for parameter in parameters:
            parameter.data = whole[start : start + len(parameter)]
            start += len(parameter)
        return whole


def _can_be_pinned(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and not tensor.is_pinned()


def _own(parameter: Tensor, *, pinned: bool) -> Tensor:
    """What a parameter holds, after a move to pinned memory where that is wanted and not done yet."""
    if pinned and _can_be_pinned(parameter):
        with torch.inference_mode(False), torch.no_grad():
            parameter.data = parameter.detach().pin_memory()
    return parameter.detach()


def layer_weights(backbone: Qwen3Model, *, pinned: bool = False) -> list[LayerWeights]:
    """The weights of every block, projections joined.

    Args:
        backbone: Its parameters become views of the joined projections.
        pinned: Also move the parameters from main memory to pinned memory. They stay there, so that the next call
            copies nothing and no weight exists twice.

    Raises:
        GenerationError: A projection is wrapped, as by an adapter that has not been merged.
    """
    made = []
    for index, layer in enumerate(cast(Iterable[Qwen3DecoderLayer], backbone.layers)):
        attention, mlp = layer.self_attn, layer.mlp
        projections = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        for module in [*projections, mlp.gate_proj, mlp.up_proj, mlp.down_proj]:
            if type(module) is not nn.Linear:
                raise GenerationError(
                    f"layer {index} of the backbone holds a {type(module).__name__} in place of a plain projection; "
                    "merge the adapter into the weights before generating"
                )
        heads = attention.q_proj.out_features // attention.head_dim
        kv_heads = attention.k_proj.out_features // attention.head_dim
        norms = [attention.q_norm.weight.expand(heads, -1), attention.k_norm.weight.expand(kv_heads, -1)]
        made.append(
            LayerWeights(
                input_norm=_own(layer.input_layernorm.weight, pinned=pinned),
                query_key_value=joined([projection.weight for projection in projections[:3]], pinned=pinned),
                query_key_norm=torch.cat(norms).detach(),
                attention_out=_own(attention.o_proj.weight, pinned=pinned),
                mlp_norm=_own(layer.post_attention_layernorm.weight, pinned=pinned),
                gate_up=joined([mlp.gate_proj.weight, mlp.up_proj.weight], pinned=pinned),
                down=_own(mlp.down_proj.weight, pinned=pinned),
            )
        )
    return made


class PackedLayer(NamedTuple):
    """The matrices of one block laid out for products on the CPU; None where they are not."""

    query_key_value: Tensor | None = None
    attention_out: Tensor | None = None
    gate_up: Tensor | None = None
    down: Tensor | None = None


_PACKED: WeakKeyDictionary[Qwen3Model, list[list[PackedWeight]]] = WeakKeyDictionary()
"""Copies of earlier decoders: the next one takes them over if the weights are still the same."""


def packed_layers(backbone: Qwen3Model, weights: Sequence[LayerWeights]) -> list[PackedLayer]:
    """The blocks' matrices packed, if that is worth it here, made once for a backbone."""
    if not worth_packing(backbone):
        return [PackedLayer()] * len(weights)
    kept = _PACKED.setdefault(backbone, [[PackedWeight() for _ in PackedLayer._fields] for _ in weights])
    packed = []
    for layer, block, copies in zip(backbone.layers, weights, kept, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        parts = [
            [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight],
            [attention.o_proj.weight],
            [mlp.gate_proj.weight, mlp.up_proj.weight],
            [mlp.down_proj.weight],
        ]
        for name, copy, sources in zip(PackedLayer._fields, copies, parts, strict=True):
            copy.pack_(getattr(block, name), sources)
        packed.append(PackedLayer(*(copy.current(sources) for copy, sources in zip(copies, parts, strict=True))))
    return packed


def copies_beside_work(device: torch.device) -> bool:
    """Whether a device can fetch from pinned memory while it works."""
    return device.type == "cuda"


class StreamedLayers:
    """Blocks that wait in main memory: each is copied to the device for its turn and freed after.

    At most two are on the device: the one at work and the next, whose copy runs beside it.
    """

    def __init__(self, layers: Sequence[LayerWeights], device: torch.device) -> None:
        """Take over the weights; a CUDA device copies them beside its work if they are pinned."""
        self.device = device
        self._stream = torch.cuda.Stream(device) if copies_beside_work(device) else None
        # Made anew for each decoder and a few KiB large: it waits on the device.
        self._layers = [layer._replace(query_key_norm=layer.query_key_norm.to(device)) for layer in layers]

    def __iter__(self) -> Iterator[LayerWeights]:
        """The blocks in order, on the device."""
        upcoming: list[LayerWeights] = [self.copy(0)]
        for index in range(len(self._layers)):
            current = upcoming.pop()
            if self._stream is not None:
                torch.cuda.current_stream(self.device).wait_stream(self._stream)
                for tensor in current:
                    tensor.record_stream(torch.cuda.current_stream(self.device))
            if index + 1 < len(self._layers):
                upcoming.append(self.copy(index + 1))
            yield current
            del current

    def copy(self, index: int) -> LayerWeights:
        """A block's weights on the device."""
        layer = self._layers[index]
        if self._stream is None:
            return LayerWeights(*(tensor.to(self.device, copy=True) for tensor in layer))
        with torch.cuda.stream(self._stream):
            return LayerWeights(*(tensor.to(self.device, non_blocking=True) for tensor in layer))


def place(model: nn.Module, backbone: Qwen3Model, device: torch.device | str, offload: Offload) -> None:
    """Move a model to a device; with offload the backbone's blocks stay in main memory."""
    if offload is Offload.none:
        model.to(device)
        return
    layers = backbone.layers
    backbone.layers = nn.ModuleList()
    try:
        model.to(device)
    finally:
        backbone.layers = layers.to("cpu")
