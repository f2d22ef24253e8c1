"""Use and evenness of codes."""

import pytest
import torch

from moss.tokenizer.codebook_health import codebook_health, count_codes


def test_counts_are_per_codebook() -> None:
    codes = torch.tensor([[[0, 3], [1, 3]], [[1, 3], [1, 0]]])
    assert count_codes(codes, 4).tolist() == [[1, 3, 0, 0], [1, 0, 0, 3]]


def test_used_share_and_perplexity() -> None:
    health = codebook_health(torch.tensor([[5, 5, 5, 5], [20, 0, 0, 0], [10, 10, 0, 0]]))
    assert health.frames == 20
    assert health.used_frac == (1.0, 0.25, 0.5)
    assert health.perplexity == pytest.approx((4.0, 1.0, 2.0))
    assert health.lowest_used_frac == 0.25
