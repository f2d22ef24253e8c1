"""Windows, blocks, streams and patches."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moss.config.tokenizer import TransformerStage
from moss.tokenizer.transformer import (
    PIECE_POSITIONS,
    SMALLEST_PIECE,
    StageState,
    Transformer,
    patchify,
    rotary_angles,
    rotate,
    unpatchify,
    windowed_attention,
)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def dense(query: Tensor, keys: Tensor, values: Tensor, context: int) -> Tensor:
    past = keys.shape[2] - query.shape[2]
    at = torch.arange(past, keys.shape[2])[:, None]
    delta = at - torch.arange(keys.shape[2])[None, :]
    return F.scaled_dot_product_attention(query, keys, values, (delta >= 0) & (delta < context))


def small_stage(positions_per_s: float = 10) -> Transformer:
    torch.manual_seed(0)
    sizes = {"input_size": 6, "output_size": 5, "hidden_size": 8, "num_layers": 3, "num_heads": 2}
    config = TransformerStage(**sizes, intermediate_size=16, context_s=1.0, layer_scale_init=0.5)
    return Transformer(config, positions_per_s=positions_per_s)


@pytest.mark.parametrize("context", [1, 7, 40, 100])
@pytest.mark.parametrize("past", [0, 3, 50])
@pytest.mark.parametrize("block_size", [None, 1, 16, 1000])
def test_blocked_attention_equals_dense(context: int, past: int, block_size: int | None) -> None:
    query, keys, values = random(2, 3, 70, 8), random(2, 3, 70 + past, 8), random(2, 3, 70 + past, 6)
    blocked = windowed_attention(query, keys, values, context, block_size)
    torch.testing.assert_close(blocked, dense(query, keys, values, context), atol=1e-6, rtol=0)


def test_no_mask_of_all_positions_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = []
    attend = F.scaled_dot_product_attention

    def watched(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, **options: bool) -> Tensor:
        largest.append(keys.shape[2] * query.shape[2] if mask is None else mask.numel())
        return attend(query, keys, values, mask, **options)

    monkeypatch.setattr("moss.tokenizer.transformer.F.scaled_dot_product_attention", watched)
    windowed_attention(random(1, 1, 4000, 4), random(1, 1, 4000, 4), random(1, 1, 4000, 4), context=100)
    # The causal start, all whole blocks in one call, and the rest.
    assert len(largest) == 3
    assert max(largest) <= 64 * (64 + 100)


@pytest.mark.parametrize("chunk", [1, 3, 10, 64])
def test_chunks_equal_the_whole_beyond_the_window(chunk: int) -> None:
    stage = small_stage()
    x = random(2, 64, 6)
    state = StageState()
    with torch.no_grad():
        pieces = [stage(piece, state) for piece in x.split(chunk, 1)]
        torch.testing.assert_close(torch.cat(pieces, 1), stage(x), atol=1e-6, rtol=0)
    assert state.position == 64
    assert all(keys.shape[2] <= 9 for keys in state.keys)


def test_gradients_of_equal_blocks_equal_dense_ones() -> None:
    tensors = [random(2, 3, 200, 8) for _ in range(3)]
    gradients = []
    for attend in (windowed_attention, dense):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        (attend(*leaves, 20) * random(2, 3, 200, 8)).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for blocked, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(blocked, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("positions", [1, 5, 200])
def test_filling_is_never_seen(positions: int) -> None:
    past, context = 30, 31
    query = random(2, 3, positions, 8)
    keys, values = random(2, 3, past + positions, 8), random(2, 3, past + positions, 8)
    attended = windowed_attention(query, keys, values, context, filling=[0, 12])
    full = dense(query[:1], keys[:1], values[:1], context)
    late = dense(query[1:], keys[1:, :, 12:], values[1:, :, 12:], context)
    torch.testing.assert_close(attended, torch.cat((full, late)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("context_positions", [10, 1500])
def test_pieces_of_a_long_sequence_equal_the_whole(context_positions: int) -> None:
    stage = small_stage(positions_per_s=context_positions)
    x = random(2, 2 * PIECE_POSITIONS + 77, 6)
    whole = stage(x)
    assert whole.requires_grad, "with gradients the sequence is not cut"
    with torch.no_grad():
        torch.testing.assert_close(stage(x), whole.detach(), atol=1e-5, rtol=0)


def test_a_piece_is_all_that_a_layer_sees_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = []
    plain = F.gelu

    def watched(x: Tensor) -> Tensor:
        longest.append(x.shape[1])
        return plain(x)

    monkeypatch.setattr("moss.tokenizer.transformer.F.gelu", watched)
    with torch.no_grad():
        small_stage()(random(1, 5000, 6))
        assert max(longest) == PIECE_POSITIONS
        small_stage()(random(8, 5000, 6))
    assert longest[-1] <= SMALLEST_PIECE


@torch.no_grad()
def test_small_steps_do_not_copy_the_window() -> None:
    stage = small_stage(positions_per_s=400)
    state = StageState()
    stage(random(1, 500, 6), state)
    places = []
    for _ in range(80):
        stage(random(1, 5, 6), state)
        places.append([keys.untyped_storage().data_ptr() for keys in state.keys])
        for keys in state.keys:
            assert keys.shape[2] == 399
            assert keys.untyped_storage().nbytes() < 2.6 * keys.nbytes
    moves = [[a != b for a, b in zip(*steps, strict=True)] for steps in itertools.pairwise(places)]
    assert all(2 <= sum(layer) <= 6 for layer in zip(*moves, strict=True))
    assert all(sum(step) <= 1 for step in moves[1:]), "layers move at different steps"


@torch.no_grad()
def test_a_copied_state_goes_its_own_way() -> None:
    stage = small_stage(positions_per_s=40)
    past, one, other = random(1, 60, 6), random(1, 8, 6), random(1, 9, 6)
    state = StageState()
    stage(past, state)
    stage(one[:, :1], state)
    copy = replace(state, keys=list(state.keys), values=list(state.values))
    before = [tensor.clone() for tensor in copy.keys + copy.values]
    ours = stage(one[:, 1:], state)
    assert all(torch.equal(a, b) for a, b in zip(before, copy.keys + copy.values, strict=True))
    theirs = stage(other, copy)
    again = stage(one[:, :2], state)
    expected = stage(torch.cat((past, one, one[:, :2]), 1))
    torch.testing.assert_close(torch.cat((ours, again), 1), expected[:, 61:], atol=1e-6, rtol=0)
    torch.testing.assert_close(theirs, stage(torch.cat((past, one[:, :1], other), 1))[:, 61:], atol=1e-6, rtol=0)


def test_masks_of_inference_serve_training() -> None:
    x = random(1, 1, 40, 8)
    with torch.inference_mode():
        windowed_attention(x, x, x, 13, 7)
        small_stage()(random(1, 30, 6))
    trained = x.clone().requires_grad_()
    windowed_attention(trained, trained, trained, 13, 7).sum().backward()
    assert trained.grad is not None
    small_stage()(random(1, 30, 6)).sum().backward()


def test_rotation_keeps_relative_positions() -> None:
    query, key = random(1, 1, 1, 16), random(1, 1, 1, 16)

    def score(at: int, seen: int) -> float:
        turned = rotate(query, *rotary_angles(at, 1, 16, 1e4, query.device))
        return float((turned * rotate(key, *rotary_angles(seen, 1, 16, 1e4, key.device))).sum())

    assert score(40, 35) == pytest.approx(score(5, 0), abs=1e-5)
    # Ten hours at 100 Hz: float32 angles would be off by 0.3 here.
    assert score(3_600_005, 3_600_000) == pytest.approx(score(5, 0), abs=1e-5)


def test_patchify_order_and_inverse() -> None:
    x = torch.arange(12.0).view(1, 6, 2)
    folded = patchify(x, 3)
    assert folded[0, 1].tolist() == [6, 8, 10, 7, 9, 11]
    assert torch.equal(unpatchify(folded, 3), x)


def test_projections_are_left_out_where_widths_agree() -> None:
    sizes = {"input_size": 8, "output_size": 8, "hidden_size": 8, "num_layers": 1, "num_heads": 2}
    names = dict(Transformer(TransformerStage(**sizes, intermediate_size=8), 10.0).named_parameters())
    assert not any("put_proj" in name for name in names)
    always = Transformer(TransformerStage(**sizes, intermediate_size=8, always_project=True), 10.0)
    assert {"input_proj.weight", "output_proj.weight"} <= set(dict(always.named_parameters()))
