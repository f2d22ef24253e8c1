"""What the incremental decoder computes with: the backbone's own weights, on the device or waiting in main memory.

Projections that read the same input become views of one tensor, so that one matrix product serves them and no weight
exists twice.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from moss.config.generation import Offload
from moss.errors import GenerationError
from moss.model.channels import stored_transposed


class LayerWeights(NamedTuple):
    """What one decoder block computes with; `query_key_norm` is (query and key heads, head_dim)."""

    input_norm: Tensor
    query_key_value: Tensor
    query_key_norm: Tensor
    attention_out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


def joined(parameters: Sequence[Tensor]) -> Tensor:
    """One matrix whose rows are those of the parameters in order; the parameters become views of it.

    A second call finds everything in place and copies nothing. See `stored_transposed` for how it lies in memory.

    Args:
        parameters: Matrices of equal width, dtype and device.

    Returns:
        Shape (rows of all, width), of whatever strides.
    """
    first = parameters[0]
    rows, width = sum(len(parameter) for parameter in parameters), first.shape[1]
    transposed = stored_transposed(first.device, rows, width)
    strides = (1, rows) if transposed else (width, 1)
    address, in_place = first.data_ptr(), True
    for parameter in parameters:
        same = parameter.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        in_place &= same and parameter.stride() == strides and parameter.data_ptr() == address
        address += len(parameter) * strides[0] * parameter.element_size()
    # Parameters must not become inference tensors: training may go on with them.
    with torch.inference_mode(False), torch.no_grad():
        if in_place:
            return first.detach().as_strided((rows, width), strides)
        whole = torch.cat([parameter.detach() for parameter in parameters])
        if transposed:
            whole = whole.T.contiguous().T
        start = 0
        for parameter in parameters:
            parameter.data = whole[start : start + len(parameter)]
            start += len(parameter)
        return whole


def layer_weights(backbone: Qwen3Model) -> list[LayerWeights]:
    """The weights of every block, projections joined.

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
                input_norm=layer.input_layernorm.weight.detach(),
                query_key_value=joined([projection.weight for projection in projections[:3]]),
                query_key_norm=torch.cat(norms).detach(),
                attention_out=attention.o_proj.weight.detach().T,
                mlp_norm=layer.post_attention_layernorm.weight.detach(),
                gate_up=joined([mlp.gate_proj.weight, mlp.up_proj.weight]),
                down=mlp.down_proj.weight.detach().T,
            )
        )
    return made


class StreamedLayers:
    """Blocks that wait in main memory: each is copied to the device for its turn and freed after.

    At most two are on the device: the one at work and the next, whose copy runs beside it.
    """

    def __init__(self, layers: Sequence[LayerWeights], device: torch.device) -> None:
        """Pin the waiting weights where the device can then copy beside its work."""
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._layers = [LayerWeights(*map(self._pinned, layer)) for layer in layers]

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

    def _pinned(self, tensor: Tensor) -> Tensor:
        return tensor if self._stream is None or tensor.is_pinned() else tensor.pin_memory()


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
