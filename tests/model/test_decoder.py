"""The incremental decoder equals transformers' forward with its cache, whatever the kernel or the place of weights."""

import logging
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Model
from transformers.cache_utils import DynamicCache

from moss.config.generation import Attention, Offload
from moss.config.model import ModelConfig
from moss.errors import GenerationError
from moss.model import decoder as decoder_module
from moss.model.backbone import build_backbone
from moss.model.decoder import BackboneDecoder, choose_attention
from moss.model.decoder_weights import LayerWeights, StreamedLayers, joined, place

TOLERANCE = 1e-5
CONFIG = ModelConfig(
    architecture="delay",
    vocab_size=10,
    hidden_size=32,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    initializer_range=0.2,
)


def fresh(seed: int = 0) -> Qwen3Model:
    """Random weights, norms included."""
    torch.manual_seed(seed)
    backbone = build_backbone(CONFIG)
    for name, parameter in backbone.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    backbone.eval()
    return backbone


@pytest.fixture(scope="module")
def backbone() -> Qwen3Model:
    return fresh()


def inputs(batch: int, positions: int) -> Tensor:
    return torch.randn(batch, positions, CONFIG.hidden_size, generator=torch.Generator().manual_seed(positions))


def expected(backbone: Qwen3Model, embedded: Tensor, mask: Tensor | None = None) -> Tensor:
    """transformers in one pass; positions count the visible ones."""
    places = None if mask is None else (mask.long().cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        made = backbone(
            inputs_embeds=embedded, attention_mask=mask, position_ids=places, past_key_values=DynamicCache()
        )
    assert isinstance(made.last_hidden_state, Tensor)
    return made.last_hidden_state


def run(decoder: BackboneDecoder, embedded: Tensor, chunks: list[int], mask: Tensor | None = None) -> Tensor:
    masks = [None] * len(chunks) if mask is None else list(mask.split(chunks, 1))
    parts = [decoder.extend(part, seen) for part, seen in zip(embedded.split(chunks, 1), masks, strict=True)]
    return torch.cat(parts, 1)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("attention", [Attention.sdpa, Attention.eager])
@pytest.mark.parametrize("chunks", [[12], [7, 1, 1, 1, 1, 1], [1] * 12, [5, 4, 3], [3, 1, 6, 1, 1]])
@pytest.mark.parametrize("batch", [1, 3])
def test_any_cut_equals_one_pass(backbone: Qwen3Model, attention: Attention, chunks: list[int], batch: int) -> None:
    embedded = inputs(batch, 12)
    decoder = BackboneDecoder(backbone, batch, 12, attention=attention)
    close(run(decoder, embedded, chunks), expected(backbone, embedded))
    assert (decoder.length, decoder.capacity) == (12, 12)


@pytest.mark.parametrize("attention", [Attention.sdpa, Attention.eager])
@pytest.mark.parametrize("chunks", [[14], [9, 1, 1, 1, 1, 1], [9, 5], [2, 7, 1, 4]])
def test_masked_positions_are_not_seen(backbone: Qwen3Model, attention: Attention, chunks: list[int]) -> None:
    embedded = inputs(3, 14)
    mask = torch.ones(3, 14, dtype=torch.bool)
    mask[0, :5] = False  # left padding, into the second of the chunks of two
    mask[1, 10:] = False  # stopped
    mask[2, [3, 11]] = False
    decoder = BackboneDecoder(backbone, 3, 14, attention=attention)
    got = run(decoder, embedded, chunks, mask)
    close(got[mask], expected(backbone, embedded, mask)[mask])
    assert torch.isfinite(got).all()


def test_steps_after_left_padding_need_no_mask(backbone: Qwen3Model) -> None:
    embedded = inputs(2, 11)
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[1, :4] = False
    decoder = BackboneDecoder(backbone, 2, 11)
    parts = [decoder.extend(embedded[:, :6], mask[:, :6]), decoder.extend(embedded[:, 6:7])]
    parts += [decoder.extend(embedded[:, 7:10]), decoder.extend(embedded[:, 10:])]
    close(torch.cat(parts, 1)[mask], expected(backbone, embedded, mask)[mask])


@pytest.mark.parametrize("masked", [False, True])
def test_growth_and_truncation(backbone: Qwen3Model, masked: bool) -> None:
    embedded, other = inputs(2, 13), inputs(2, 5)
    mask = torch.ones(2, 13, dtype=torch.bool)
    mask[0, :3] = not masked
    decoder = BackboneDecoder(backbone, 2, 4)
    run(decoder, embedded, [4, 1, 3, 1, 4], mask)
    assert decoder.capacity == 16
    decoder.truncate(6)
    got = torch.cat([decoder.extend(other[:, :2]), decoder.extend(other[:, 2:3])], 1)
    assert decoder.length == 9
    whole = torch.cat([embedded[:, :6], other[:, :3]], 1)
    close(got, expected(backbone, whole, mask[:, :9])[:, 6:])


def test_keeping_some_rows(backbone: Qwen3Model) -> None:
    embedded = inputs(3, 10)
    mask = torch.ones(3, 10, dtype=torch.bool)
    mask[0, :2] = False
    decoder = BackboneDecoder(backbone, 3, 10)
    run(decoder, embedded[:, :7], [6, 1], mask[:, :7])
    want = expected(backbone, embedded, mask)
    decoder.keep(torch.tensor([2, 0]))
    close(decoder.extend(embedded[[2, 0], 7:8])[:, 0], want[[2, 0], 7])
    # Without the padded row no mask is left.
    decoder.keep(torch.tensor([0]))
    assert decoder._visible is None
    close(decoder.extend(embedded[[2], 8:])[0], want[2, 8:])


def test_the_model_stays_whole(backbone: Qwen3Model) -> None:
    model = fresh(3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    want = expected(model, inputs(1, 4))
    BackboneDecoder(model, 1, 4)
    layer: Any = model.layers[0]
    projections = [layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight, layer.self_attn.v_proj.weight]
    whole = joined(projections)
    assert whole.data_ptr() == projections[0].data_ptr(), "joined twice, copied once"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    close(expected(model, inputs(1, 4)), want)
    # Training may go on: gradients reach the same parameters, and the decoder sees what an optimizer writes.
    model(inputs_embeds=inputs(1, 4)).last_hidden_state.sum().backward()
    assert projections[1].grad is not None
    with torch.no_grad():
        projections[1].mul_(-1.5)
    close(BackboneDecoder(model, 1, 4).extend(inputs(1, 4)), expected(model, inputs(1, 4)))


@pytest.mark.parametrize("rows", [[3, 5], [40, 8, 8]])
def test_joined_in_place(rows: list[int]) -> None:
    parameters = [torch.nn.Parameter(torch.randn(count, 12)) for count in rows]
    want = torch.cat([parameter.detach().clone() for parameter in parameters])
    first, second = joined(parameters), joined(parameters)
    assert torch.equal(first, want)
    assert torch.equal(second, want)
    assert first.data_ptr() == second.data_ptr() == parameters[0].data_ptr()
    assert torch.equal(torch.cat([parameter.detach() for parameter in parameters]), want)
    parameters[1].data = parameters[1].data.clone()
    assert joined(parameters).data_ptr() not in (first.data_ptr(), 0)


def test_an_adapter_must_be_merged() -> None:
    model = fresh()
    layer: Any = model.layers[1]
    layer.mlp.up_proj = torch.nn.Sequential(layer.mlp.up_proj)
    message = "layer 1 of the backbone holds a Sequential in place of a plain projection; merge the adapter into"
    with pytest.raises(GenerationError, match=message):
        BackboneDecoder(model, 1, 4)


def test_flash_attention_needs_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = "attention=flash_attention_2 needs a CUDA device, bfloat16 or float16 weights and the package flash-attn, "
    with pytest.raises(GenerationError, match=needs + "but the model is torch.float32 on cpu; use attention=auto"):
        BackboneDecoder(fresh(), 1, 4, attention=Attention.flash_attention_2)
    device = torch.device("cuda")
    monkeypatch.setattr(decoder_module.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    with pytest.raises(GenerationError, match="but the package flash-attn is not installed; use attention=auto"):
        choose_attention(Attention.flash_attention_2, device, torch.bfloat16)
    assert choose_attention(Attention.auto, device, torch.bfloat16) is Attention.sdpa
    monkeypatch.setattr(decoder_module.importlib.util, "find_spec", lambda name: name)  # type: ignore[attr-defined]
    assert choose_attention(Attention.auto, device, torch.bfloat16) is Attention.flash_attention_2
    assert choose_attention(Attention.auto, device, torch.float32) is Attention.sdpa
    assert choose_attention(Attention.auto, torch.device("cpu"), torch.bfloat16) is Attention.sdpa


def test_the_choice_is_logged_once(backbone: Qwen3Model, caplog: pytest.LogCaptureFixture) -> None:
    decoder_module._announce.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            BackboneDecoder(backbone, 1, 4, attention=Attention.eager)
    assert [record.message for record in caplog.records] == ["attention: eager on cpu"]


class Watched(StreamedLayers):
    """Counts the copied blocks that are alive."""

    copies, alive, most = 0, 0, 0

    def copy(self, index: int) -> LayerWeights:
        made = super().copy(index)
        Watched.copies += 1
        Watched.alive += 1
        Watched.most = max(Watched.most, Watched.alive)
        weakref.finalize(made.query_key_value, Watched.gone)
        return made

    @staticmethod
    def gone() -> None:
        Watched.alive -= 1


def test_offloaded_blocks_are_on_the_device_two_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_module, "StreamedLayers", Watched)
    model = fresh(5)
    place(model, model, "cpu", Offload.cpu)
    assert len(model.layers) == CONFIG.num_layers
    embedded = inputs(2, 6)
    plain = run(BackboneDecoder(model, 2, 6), embedded, [4, 1, 1])
    decoder = BackboneDecoder(model, 2, 6, offload=Offload.cpu)
    # Streamed blocks are not packed, so the products are another library's.
    close(run(decoder, embedded, [4, 1, 1]), plain)
    assert (Watched.copies, Watched.alive, Watched.most) == (3 * CONFIG.num_layers, 0, 2)


def test_offloaded_blocks_are_pinned_once_and_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second decoder copies nothing, no weight exists twice, and weights loaded later are not missed."""
    pinned: list[Tensor] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor))
        return pinned[-1]

    def is_pinned(tensor: Tensor) -> bool:
        return any(tensor.untyped_storage().data_ptr() == one.untyped_storage().data_ptr() for one in pinned)

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "is_pinned", is_pinned)
    model, embedded = fresh(5), inputs(2, 6)
    plain = run(BackboneDecoder(model, 2, 6, offload=Offload.cpu), embedded, [4, 1, 1])
    assert pinned == [], "a CPU does not copy beside its work"
    monkeypatch.setattr(decoder_module, "copies_beside_work", lambda device: True)
    assert torch.equal(run(BackboneDecoder(model, 2, 6, offload=Offload.cpu), embedded, [4, 1, 1]), plain)
    # Joined q, k, v; o; joined gate, up; down; and the two norms of a block that are no table of their own.
    assert len(pinned) == 6 * CONFIG.num_layers
    norms = ("q_norm", "k_norm")
    parameters = {name: one for name, one in model.layers.named_parameters() if not any(n in name for n in norms)}
    assert all(is_pinned(one) for one in parameters.values())
    assert all(one.requires_grad and not one.is_inference() for one in parameters.values())
    again = BackboneDecoder(model, 2, 6, offload=Offload.cpu)
    assert len(pinned) == 6 * CONFIG.num_layers
    assert torch.equal(run(again, embedded, [4, 1, 1]), plain)
    model.load_state_dict(fresh(6).state_dict())
    new = run(BackboneDecoder(model, 2, 6, offload=Offload.cpu), embedded, [4, 1, 1])
    close(new, expected(model, embedded))
    assert not torch.allclose(new, plain)
    assert len(pinned) == 6 * CONFIG.num_layers


def test_half_precision_stays_half(backbone: Qwen3Model) -> None:
    model = fresh().bfloat16()
    embedded = inputs(1, 8).to(torch.bfloat16)
    got = run(BackboneDecoder(model, 1, 8), embedded, [6, 1, 1])
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected(model, embedded), rtol=0.05, atol=0.1)
