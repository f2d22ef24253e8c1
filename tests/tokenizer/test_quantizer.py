"""Matching, straight-through gradients, dropout of codebooks, and the folded tables."""

import torch
from torch import Tensor
from torch.nn import functional as F

from moss.config.tokenizer import QuantizerConfig
from moss.tokenizer.quantizer import SCORED_FRAMES, ResidualQuantizer, WeightNormConv

SIZES = QuantizerConfig(input_size=12, residual_size=10, output_size=14, num_codebooks=4, codebook_size=16, code_size=4)


def quantizer() -> ResidualQuantizer:
    torch.manual_seed(1)
    return ResidualQuantizer(SIZES)


def hidden(batch: int = 3, frames: int = 20) -> Tensor:
    return torch.randn(batch, frames, 12, generator=torch.Generator().manual_seed(2)) * 3


def test_weight_norm_starts_as_its_direction() -> None:
    torch.manual_seed(0)
    layer = WeightNormConv(5, 7)
    stored = layer.parametrizations["weight"]
    torch.testing.assert_close(layer.weight(), stored.original1[:, :, 0])
    stored.original0.data *= 2
    torch.testing.assert_close(layer.weight(), 2 * stored.original1[:, :, 0])


def test_match_is_the_nearest_direction() -> None:
    layer = quantizer().quantizers[0]
    latent = torch.randn(50, 4)
    rows = F.normalize(layer.codebook.weight, dim=-1)
    distance = (F.normalize(latent, dim=-1)[:, None] - rows[None]).square().sum(-1)
    assert torch.equal(layer.match(latent), distance.argmin(-1))


def test_folding_changes_neither_codes_nor_output() -> None:
    module = quantizer()
    folded = module.fold()
    plain = module(hidden())
    assert torch.equal(folded.encode(hidden()), plain.codes_BTK)
    torch.testing.assert_close(folded.decode(plain.codes_BTK), plain.quantized_BTD, atol=1e-5, rtol=0)
    assert torch.equal(folded.encode(hidden(), 2), plain.codes_BTK[:, :, :2])


def test_folding_holds_for_many_frames_and_for_none() -> None:
    module = quantizer()
    folded = module.fold()
    many = hidden(3, SCORED_FRAMES + 7)
    codes = folded.encode(many)
    assert torch.equal(codes, module(many).codes_BTK)
    assert torch.equal(codes[1:2, -5:], folded.encode(many[1:2, -5:]))
    for count in (1, 2, 3):
        assert torch.equal(folded.encode(many, count), codes[:, :, :count])
    assert folded.encode(many[:, :0]).shape == (3, 0, 4)
    assert folded.decode(codes[:, :0]).shape == (3, 0, 14)


def test_folded_tables_are_a_snapshot() -> None:
    module = quantizer()
    folded = module.fold()
    codes = folded.encode(hidden())
    decoded = folded.decode(codes)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(-1.5)
    assert torch.equal(folded.encode(hidden()), codes)
    assert torch.equal(folded.decode(codes), decoded)


def test_active_codebooks_are_a_prefix() -> None:
    module = quantizer()
    output = module(hidden(), torch.tensor([1, 3, 4]))
    folded = module.fold()
    for i, count in enumerate((1, 3, 4)):
        prefix = folded.decode(output.codes_BTK[i : i + 1, :, :count])
        torch.testing.assert_close(output.quantized_BTD[i : i + 1], prefix, atol=1e-5, rtol=0)


def test_losses_are_means_over_items_of_sums_over_active_codebooks() -> None:
    module = quantizer()
    output = module(hidden(2), torch.tensor([1, 4]))
    chosen = torch.stack([layer.codebook(output.codes_BTK[:, :, k]) for k, layer in enumerate(module.quantizers)], 2)
    per_book = (output.latents_BTKc - chosen).square().mean((1, 3))
    expected = (per_book[0, :1].sum() + per_book[1].sum()) / 2
    torch.testing.assert_close(output.commitment_loss, expected)
    torch.testing.assert_close(output.codebook_loss, expected)


def test_pad_code_contributes_nothing() -> None:
    folded = quantizer().fold()
    codes = folded.encode(hidden())
    padded = codes.clone()
    padded[:, :, 2:] = SIZES.codebook_size
    assert torch.equal(folded.decode(padded), folded.decode(codes[:, :, :2]))


def test_losses_pull_only_their_own_side() -> None:
    module = quantizer()
    x = hidden().requires_grad_()
    (x_gradient,) = torch.autograd.grad(module(x).codebook_loss, x, allow_unused=True)
    assert x_gradient is None or not x_gradient.any()
    tables = [layer.codebook.weight for layer in module.quantizers]
    # Through the residual a later codebook's commitment reaches earlier projections, but never a table.
    gradients = torch.autograd.grad(module(x).commitment_loss, tables, allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in gradients)
    commitment = torch.autograd.grad(module(x).commitment_loss, x)[0]
    assert commitment.any()
    codebook = torch.autograd.grad(module(x).codebook_loss, tables)
    assert all(gradient.any() for gradient in codebook)


def test_reconstruction_gradient_passes_straight_through() -> None:
    module = quantizer()
    x = hidden().requires_grad_()
    (gradient,) = torch.autograd.grad(module(x).quantized_BTD.sum(), x)
    assert gradient.isfinite().all()
    assert gradient.any()
