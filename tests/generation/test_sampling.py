"""The sampler's filters and its draw by inversion."""

import pytest
import torch

from moss.config.generation import GenerationConfig, SamplerConfig
from moss.config.schema import check
from moss.generation.sampling import draw, keep_top_k, keep_top_p, penalise_seen, sample, scale

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0])
INF = float("inf")


def test_greedy_takes_the_largest_after_the_penalty() -> None:
    config = SamplerConfig(temperature=0.0, repetition_penalty=4.0, top_k=1)
    seen = torch.tensor([False, True, False, False])
    assert sample(LOGITS, config, torch.tensor(0.99)) == 1
    assert sample(LOGITS, config, torch.tensor(0.0), seen) == 2


def test_penalty_moves_both_signs_down() -> None:
    seen = torch.tensor([True, False, False, True])
    assert penalise_seen(LOGITS, seen, 2.0).tolist() == [0.5, 3.0, 2.0, -2.0]
    assert penalise_seen(LOGITS, seen, 1.0) is LOGITS


def test_scale() -> None:
    assert scale(LOGITS, 2.0).tolist() == [0.5, 1.5, 1.0, -0.5]
    assert scale(LOGITS, -1.0) is LOGITS


def test_top_k_keeps_exactly_k_among_equals() -> None:
    kept = keep_top_k(torch.zeros(2, 6), 4)
    assert torch.isfinite(kept).sum(-1).tolist() == [4, 4]
    assert keep_top_k(LOGITS, 2).tolist() == [-INF, 3.0, 2.0, -INF]
    assert keep_top_k(LOGITS, 0) is LOGITS
    assert keep_top_k(LOGITS, 9) is LOGITS


@pytest.mark.parametrize(("top_p", "kept"), [(1e-9, [1]), (0.5, [1]), (0.64, [1]), (0.7, [1, 2]), (0.95, [0, 1, 2])])
def test_top_p_keeps_the_id_that_crosses(top_p: float, kept: list[int]) -> None:
    assert torch.isfinite(keep_top_p(LOGITS, top_p)).nonzero().flatten().tolist() == kept


def test_draw_follows_the_probabilities() -> None:
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    ids = draw(LOGITS.expand(10_000, 4), uniform)
    shares = torch.bincount(ids, minlength=4) / 10_000
    torch.testing.assert_close(shares, LOGITS.softmax(0), atol=2e-4, rtol=0)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_draw_never_takes_what_was_ruled_out(uniform: float) -> None:
    logits = torch.tensor([-INF, -INF, 0.0, 0.0, -INF])
    assert draw(logits, torch.tensor(uniform)) in (2, 3)
    assert draw(torch.tensor([-INF, 5.0, -INF]), torch.tensor(uniform)) == 1


def test_settings_out_of_range() -> None:
    wrong = {"text": {"top_k": -1, "top_p": 0.0, "repetition_penalty": 0}, "max_frames": 0, "batch_size": 0}
    assert check(GenerationConfig, wrong) == [
        "text.top_k: must be 0 (off) or more, got -1",
        "text.top_p: must be in (0, 1], got 0.0",
        "text.repetition_penalty: must be positive, got 0.0",
    ]
    assert check(GenerationConfig, {"max_frames": 0, "batch_size": 0}) == [
        "max_frames: must be at least 1, got 0",
        "batch_size: must be at least 1, got 0",
    ]
