"""Windows, blocks, streams and patches."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moss.config.tokenizer import TransformerStage
from moss.tokenizer.transformer import (
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

    def watched(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        largest.append(mask.numel())
        return attend(query, keys, values, mask)

    monkeypatch.setattr("moss.tokenizer.transformer.F.scaled_dot_product_attention", watched)
    windowed_attention(random(1, 1, 4000, 4), random(1, 1, 4000, 4), random(1, 1, 4000, 4), context=100)
    assert max(largest) <= 64 * (64 + 100)


@pytest.mark.parametrize("chunk", [1, 3, 10, 64])
def test_chunks_equal_the_whole_beyond_the_window(chunk: int) -> None:
    torch.manual_seed(0)
    config = TransformerStage(
        input_size=6,
        output_size=5,
        hidden_size=8,
        num_layers=3,
        num_heads=2,
        intermediate_size=16,
        context_s=1.0,
        layer_scale_init=0.5,
    )
    stage = Transformer(config, positions_per_s=10)
    x = random(2, 64, 6)
    state = StageState()
    with torch.no_grad():
        pieces = [stage(piece, state) for piece in x.split(chunk, 1)]
        torch.testing.assert_close(torch.cat(pieces, 1), stage(x), atol=1e-6, rtol=0)
    assert state.position == 64
    assert all(keys.shape[2] <= 9 for keys in state.keys)


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
