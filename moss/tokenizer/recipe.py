"""What keeps codebooks alive when Cat is trained from nothing in minutes instead of weeks.

The documented recipe learns codebooks by gradient alone, with no data initialisation and no restarts; in a short run
that ends with one code per codebook. Everything here is optional, and a pure function of its arguments and a seed, so
that a resumed run repeats it bit for bit.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from moss.tokenizer.quantizer import Codebook, ResidualQuantizer, WeightNormConv

KMEANS_ITERATIONS = 12


def seeded(*numbers: int) -> torch.Generator:
    """A CPU generator that depends on all of the numbers, e.g. the run's seed, the step, and a stream of its own."""
    state = 0
    for number in numbers:
        # Multiplying spreads neighbouring steps; the sum alone would repeat (seed + 1, step) as (seed, step + 1).
        state = (state * 6_364_136_223_846_793_005 + number + 1_442_695_040_888_963_407) % 2**63
    return torch.Generator().manual_seed(state)


def draw_active_codebooks(
    num_items: int, num_codebooks: int, dropout_prob: float, generator: torch.Generator
) -> Tensor:
    """Codebooks each item (B,) trains with: uniform in 1..all with probability `dropout_prob`, else all."""
    dropped = torch.rand(num_items, generator=generator) < dropout_prob
    drawn = torch.randint(1, num_codebooks + 1, (num_items,), generator=generator)
    return torch.where(dropped, drawn, num_codebooks)


@torch.no_grad()
def initialise_from_data(quantizer: ResidualQuantizer, hidden_ND: Tensor, seed: int) -> list[float]:
    """Fit the quantizer to encoder outputs: principal directions as projections, spherical k-means as codebooks.

    Each codebook projects onto the directions in which the residual before it varies most, so every codebook starts
    with a task and with all of its rows in use. The scale of the residual is set so that the first codebook's latents
    have unit variance on average; the output projection undoes it.

    Args:
        quantizer: Changed in place.
        hidden_ND: Encoder outputs (frames, width); at least as many frames as rows in a codebook.
        seed: Of the k-means starts.

    Returns:
        Share of the variance of the projected encoder output that is explained after each codebook.
    """
    assert hidden_ND.shape[0] >= quantizer.config.codebook_size, "fewer frames than codes"
    residual = quantizer.input_proj(hidden_ND.float())
    mean = residual.mean(0)
    directions = _principal_directions(residual, quantizer.config.code_size)
    scale = 1 / ((residual - mean) @ directions.T).square().mean().sqrt().clamp(min=1e-12)
    output = quantizer.output_proj
    _set_dense(output, output.weight() / scale, output.bias + output.weight() @ mean)
    _set_dense(quantizer.input_proj, quantizer.input_proj.weight() * scale, (quantizer.input_proj.bias - mean) * scale)
    residual = (residual - mean) * scale
    total = residual.var(0).sum()
    explained = []
    for i, layer in enumerate(quantizer.layers):
        residual = _initialise_codebook(layer, residual, seeded(seed, i))
        explained.append(float(1 - residual.var(0).sum() / total))
    return explained


@torch.no_grad()
def replace_dead_codes(
    quantizer: ResidualQuantizer, counts_KS: Tensor, latents_NKc: Tensor, min_uses: int, generator: torch.Generator
) -> Tensor:
    """Move rows that were used fewer than `min_uses` times onto latents drawn from the data.

    Args:
        quantizer: Changed in place.
        counts_KS: Uses of each row since the last replacement (codebooks, codebook_size).
        latents_NKc: What each codebook was recently asked to match (frames, codebooks, code_size).
        min_uses: Rows below it are dead.
        generator: Chooses the latents.

    Returns:
        Which rows were moved, bool (codebooks, codebook_size).
    """
    dead_KS = counts_KS < min_uses
    for i, layer in enumerate(quantizer.layers):
        rows = dead_KS[i].nonzero()[:, 0]
        chosen = torch.randint(latents_NKc.shape[0], (len(rows),), generator=generator)
        layer.codebook.weight[rows] = latents_NKc[chosen, i].to(layer.codebook.weight)
    return dead_KS


def spherical_kmeans(points_Nc: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rows (count, c) that points match by cosine, each as long as its points are along it on average."""
    unit = F.normalize(points_Nc, dim=-1)
    centres = unit[torch.randperm(len(unit), generator=generator)[:count]]
    for _ in range(KMEANS_ITERATIONS):
        nearest = (unit @ centres.T).argmax(-1)
        empty = (torch.bincount(nearest, minlength=count) == 0).nonzero()[:, 0]
        centres = F.normalize(torch.zeros_like(centres).index_add_(0, nearest, unit), dim=-1)
        centres[empty] = unit[torch.randint(len(unit), (len(empty),), generator=generator)]
    nearest = (unit @ centres.T).argmax(-1)
    members = torch.bincount(nearest, minlength=count)
    along = torch.zeros(count).to(points_Nc).index_add_(0, nearest, (points_Nc * centres[nearest]).sum(-1))
    length = torch.where(members > 0, along / members.clamp(min=1), points_Nc.norm(dim=-1).mean())
    return centres * length[:, None]


def _initialise_codebook(layer: Codebook, residual: Tensor, generator: torch.Generator) -> Tensor:
    """Fit one codebook to the residual; returns what it leaves over."""
    mean = residual.mean(0)
    directions = _principal_directions(residual, layer.codebook.embedding_dim)
    _set_dense(layer.in_proj, directions, -directions @ mean)
    _set_dense(layer.out_proj, directions.T, mean)
    latent = layer.in_proj(residual)
    layer.codebook.weight.copy_(spherical_kmeans(latent, layer.codebook.num_embeddings, generator))
    return residual - layer.out_proj(layer.codebook(layer.match(latent)))


def _principal_directions(points: Tensor, count: int) -> Tensor:
    """Orthonormal rows (count, width), largest variance first."""
    covariance = torch.cov(points.double().T)
    _, vectors = torch.linalg.eigh(covariance)
    return vectors.T.flip(0)[:count].to(points.dtype)


def _set_dense(layer: WeightNormConv, weight: Tensor, bias: Tensor) -> None:
    stored = layer.parametrizations["weight"]
    stored.original1.copy_(weight[:, :, None])
    stored.original0.copy_(weight.norm(dim=1)[:, None, None])
    layer.bias.copy_(bias)
