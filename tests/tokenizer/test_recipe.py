"""Fitting codebooks to data, moving dead codes, and draws that depend on seed and step alone."""

import torch
from torch import Tensor

from moss.config.tokenizer import QuantizerConfig
from moss.tokenizer.codebook_health import codebook_health, count_codes
from moss.tokenizer.quantizer import ResidualQuantizer
from moss.tokenizer.recipe import (
    draw_active_codebooks,
    initialise_from_data,
    replace_dead_codes,
    seeded,
    spherical_kmeans,
)

SIZES = QuantizerConfig(input_size=24, residual_size=20, output_size=24, num_codebooks=4, codebook_size=64, code_size=4)


def quantizer(seed: int = 0) -> ResidualQuantizer:
    torch.manual_seed(seed)
    return ResidualQuantizer(SIZES)


def hidden(frames: int = 2000, seed: int = 1) -> Tensor:
    """Frames of a few strong directions around a large common offset, as an untrained encoder gives them."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(24, 24, generator=torch.Generator().manual_seed(7)) * 0.7 ** torch.arange(24)
    return torch.randn(frames, 24, generator=generator) @ mixing.T * 0.01 + 3


def test_random_codebooks_collapse_on_such_frames_and_fitted_ones_do_not() -> None:
    module = quantizer()
    before = codebook_health(count_codes(module.fold().encode(hidden(seed=2)[None]), 64))
    initialise_from_data(module, hidden(), seed=0)
    after = codebook_health(count_codes(module.fold().encode(hidden(seed=2)[None]), 64))
    assert before.used_frac[0] <= 0.1
    assert after.lowest_used_frac >= 0.95
    assert min(after.perplexity) >= 32


def test_fitting_explains_variance_and_keeps_the_bypass() -> None:
    module = quantizer()
    bypassed = module.bypass(hidden()[None])
    explained = initialise_from_data(module, hidden(), seed=0)
    assert explained == sorted(explained)
    assert explained[-1] > 0.9
    torch.testing.assert_close(module.bypass(hidden()[None]), bypassed, atol=1e-4, rtol=0)
    quantised = module(hidden()[None]).quantized_BTD
    error = (quantised - bypassed).square().sum() / (bypassed - bypassed.mean((0, 1))).square().sum()
    assert error < 0.1


def test_fitting_is_repeatable() -> None:
    first, second = quantizer(), quantizer()
    initialise_from_data(first, hidden(), seed=3)
    initialise_from_data(second, hidden(), seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_kmeans_rows_have_the_length_of_their_points() -> None:
    directions = torch.eye(3)
    points = torch.cat([directions[i] * (i + 1) + 0.01 * torch.randn(50, 3) for i in range(3)])
    rows = spherical_kmeans(points, 3, torch.Generator().manual_seed(0))
    assert sorted(round(float(length)) for length in rows.norm(dim=1)) == [1, 2, 3]


def test_kmeans_revives_empty_rows() -> None:
    points = torch.cat([torch.ones(100, 2) + 0.001 * torch.randn(100, 2), -torch.ones(100, 2)])
    rows = spherical_kmeans(points, 20, torch.Generator().manual_seed(0))
    assert rows.isfinite().all()
    assert (rows.norm(dim=1) > 0.5).all()


def test_only_dead_rows_move_and_they_move_onto_latents() -> None:
    module = quantizer()
    counts = torch.full((4, 64), 5)
    counts[1, 10], counts[3, 0], counts[3, 1] = 1, 0, 2
    before = [layer.codebook.weight.detach().clone() for layer in module.layers]
    latents = torch.randn(30, 4, 4)
    moved = replace_dead_codes(module, counts, latents, 2, seeded(0, 1))
    assert moved.nonzero().tolist() == [[1, 10], [3, 0]]
    for book, layer in enumerate(module.layers):
        changed = (layer.codebook.weight != before[book]).any(1)
        assert torch.equal(changed, moved[book])
        for row in moved[book].nonzero()[:, 0]:
            assert (latents[:, book] == layer.codebook.weight[row]).all(1).any()


def test_moving_dead_codes_is_repeatable() -> None:
    counts = torch.randint(0, 4, (4, 64), generator=torch.Generator().manual_seed(5))
    latents = torch.randn(30, 4, 4, generator=torch.Generator().manual_seed(6))
    first, second, other = quantizer(), quantizer(), quantizer()
    for module, step in ((first, 7), (second, 7), (other, 8)):
        replace_dead_codes(module, counts, latents, 2, seeded(0, step))
    for a, b, c in zip(first.layers, second.layers, other.layers, strict=True):
        assert torch.equal(a.codebook.weight, b.codebook.weight)
        assert not torch.equal(a.codebook.weight, c.codebook.weight)


def test_draws_depend_on_every_number() -> None:
    keys = [(0, 1, 5), (0, 1, 6), (1, 1, 5), (1, 1, 4), (0, 2, 5)]
    drawn = [tuple(torch.rand(3, generator=seeded(*key)).tolist()) for key in keys]
    assert len(set(drawn)) == len(keys)
    assert torch.equal(torch.rand(3, generator=seeded(4, 2)), torch.rand(3, generator=seeded(4, 2)))


def test_dropout_probability() -> None:
    assert draw_active_codebooks(50, 8, 0.0, seeded(0)).tolist() == [8] * 50
    always = draw_active_codebooks(4000, 8, 1.0, seeded(0))
    assert torch.bincount(always, minlength=9)[1:].min() > 400
    half = draw_active_codebooks(4000, 8, 0.5, seeded(0))
    assert 0.5 < float((half == 8).float().mean()) < 0.62
