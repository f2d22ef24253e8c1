"""The residual quantizer of Cat: codebooks matched by cosine in a small space, trained by plain gradient.

Shapes are (batch, frame, feature) and codes (batch, frame, codebook). Everything is float32 whatever the
transformers compute in, because one flipped code changes all the codes after it.
Source: MOSS-Audio-Tokenizer modeling_moss_audio_tokenizer.py @56df9ee (inference); descript-audio-codec for the
straight-through estimate and the reduction of the losses.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moss.config.tokenizer import QuantizerConfig

SCORED_FRAMES = 1024
"""Frames that are compared with a codebook at once; more only need more memory."""


@dataclass(frozen=True, slots=True)
class QuantizerOutput:
    """What a training pass needs of the quantizer."""

    quantized_BTD: Tensor
    """Input of the decoder, with straight-through gradients."""
    codes_BTK: Tensor
    latents_BTKc: Tensor
    """What each codebook was asked to match, before normalisation; detached."""
    commitment_loss: Tensor
    """Scalar: pulls the encoder to the chosen vectors; no gradient to the codebooks."""
    codebook_loss: Tensor
    """Scalar: pulls the chosen vectors to the encoder; no gradient to the encoder."""


class WeightNormConv(nn.Module):
    """A 1x1 convolution with weight norm over output rows, stored as torch's parametrization stores it."""

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(output_size))
        direction = nn.init.trunc_normal_(torch.empty(output_size, input_size, 1), std=input_size**-0.5)
        weight = nn.Module()
        weight.original0 = nn.Parameter(direction.norm(dim=(1, 2), keepdim=True))
        weight.original1 = nn.Parameter(direction)
        self.parametrizations = nn.ModuleDict({"weight": weight})

    def weight(self) -> Tensor:
        """The dense weight (output_size, input_size): gain times unit rows."""
        stored = self.parametrizations["weight"]
        direction: Tensor = stored.original1[:, :, 0]
        return stored.original0[:, :, 0] * direction / direction.norm(dim=1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        """(..., input_size) to (..., output_size)."""
        return F.linear(x, self.weight(), self.bias)


class Codebook(nn.Module):
    """One layer: project into the small space, take the nearest row by cosine, project its raw value back."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.in_proj = WeightNormConv(config.residual_size, config.code_size)
        self.out_proj = WeightNormConv(config.code_size, config.residual_size)
        self.codebook = nn.Embedding(config.codebook_size, config.code_size)

    def match(self, latent: Tensor) -> Tensor:
        """Index (...) of the row with the largest cosine to each latent (..., code_size)."""
        # The latent's own length scales all scores of a frame alike and cannot change the winner.
        return (latent @ F.normalize(self.codebook.weight, dim=-1).T).argmax(-1)


class ResidualQuantizer(nn.Module):
    """Codebooks that each quantise what the ones before left over."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.input_proj = WeightNormConv(config.input_size, config.residual_size)
        self.output_proj = WeightNormConv(config.residual_size, config.output_size)
        self.quantizers = nn.ModuleList(Codebook(config) for _ in range(config.num_codebooks))

    @property
    def layers(self) -> list[Codebook]:
        """The codebooks, first to last."""
        return list(self.quantizers)  # type: ignore[arg-type]

    def bypass(self, hidden_BTD: Tensor) -> Tensor:
        """Both projections with no codes in between, for training before there are codebooks."""
        bypassed: Tensor = self.output_proj(self.input_proj(hidden_BTD.float()))
        return bypassed

    def forward(self, hidden_BTD: Tensor, active_B: Tensor | None = None) -> QuantizerOutput:
        """Quantise with gradients.

        Args:
            hidden_BTD: Encoder output.
            active_B: Number of codebooks each item uses; the later ones still run, but neither add to the output
                nor to the losses. Null: all.
        """
        residual = self.input_proj(hidden_BTD.float())
        total = torch.zeros_like(residual)
        codes, latents = [], []
        commitment, codebook = residual.new_zeros(()), residual.new_zeros(())
        for i, layer in enumerate(self.layers):
            used_B = residual.new_ones(residual.shape[0]) if active_B is None else (active_B > i).to(residual.dtype)
            latent = layer.in_proj(residual)
            code = layer.match(latent.detach())
            chosen = layer.codebook(code)
            commitment = commitment + ((latent - chosen.detach()).square().mean((1, 2)) * used_B).mean()
            codebook = codebook + ((latent.detach() - chosen).square().mean((1, 2)) * used_B).mean()
            update = layer.out_proj(latent + (chosen - latent).detach())
            total = total + update * used_B[:, None, None]
            residual = residual - update
            codes.append(code)
            latents.append(latent.detach())
        return QuantizerOutput(
            self.output_proj(total), torch.stack(codes, -1), torch.stack(latents, 2), commitment, codebook
        )

    @torch.no_grad()
    def fold(self) -> "FoldedQuantizer":
        """Tables that encode and decode the same codes with far fewer operations; a snapshot of the weights."""
        layers = self.layers
        rows = [layer.out_proj(layer.codebook.weight) for layer in layers]
        # In float64, so that only the finished tables are rounded.
        projection = torch.cat([layer.in_proj.weight() for layer in layers]).double()
        bias = torch.cat([layer.in_proj.bias for layer in layers]).double()
        width = self.config.code_size
        updates = [row.double() @ projection[(i + 1) * width :].T for i, row in enumerate(rows)]
        return FoldedQuantizer(
            latent_weight=(projection @ self.input_proj.weight().double()).float(),
            latent_bias=(projection @ self.input_proj.bias.double() + bias).float(),
            unit_rows=[F.normalize(layer.codebook.weight, dim=-1).T.contiguous() for layer in layers],
            updates=[update.float() for update in updates],
            tables=torch.stack([torch.cat((row, row.new_zeros(1, row.shape[1]))) for row in rows]),
            output_weight=self.output_proj.weight(),
            output_bias=self.output_proj.bias.detach().clone(),
        )


@dataclass(frozen=True, slots=True)
class FoldedQuantizer:
    """The quantizer with its projections multiplied out. K codebooks, S rows, c code size, R residual size.

    A codebook reads only c numbers of the residual. So the residual itself is never formed: what all codebooks would
    read is computed at once, and each chosen row then changes what the later ones read.
    """

    latent_weight: Tensor
    """(K * c, input_size)"""
    latent_bias: Tensor
    """(K * c)"""
    unit_rows: list[Tensor]
    """Per codebook (c, S), columns of length 1."""
    updates: list[Tensor]
    """Per codebook i (S, (K - i - 1) * c): what each row takes from the latents of the codebooks after it."""
    tables: Tensor
    """(K, S + 1, R): each row projected back; the last row is zero, so that the pad code contributes nothing."""
    output_weight: Tensor
    output_bias: Tensor

    @torch.no_grad()
    def encode(self, hidden_BTD: Tensor, num_codebooks: int | None = None) -> Tensor:
        """Codes (B, T, n) of the first n codebooks; equal to the first n of a full encode."""
        count = num_codebooks or len(self.updates)
        frames = hidden_BTD.flatten(0, 1).split(SCORED_FRAMES)
        return torch.cat([self._match(piece.float(), count) for piece in frames]).unflatten(0, hidden_BTD.shape[:2])

    def _match(self, hidden_TD: Tensor, count: int) -> Tensor:
        """Codes (T, count). One frame is all overhead, so every operation here counts."""
        # Of all codebooks, even where few are asked for: another shape could round differently.
        latents = F.linear(hidden_TD, self.latent_weight, self.latent_bias)
        width = self.unit_rows[0].shape[0]
        end = count * width
        codes = []
        for i, latent in enumerate(latents.split(width, 1)[:count]):
            code = (latent @ self.unit_rows[i]).argmax(1)
            codes.append(code)
            start = (i + 1) * width
            if start < end:
                update = self.updates[i] if count == len(self.updates) else self.updates[i][:, : end - start]
                # `latent` is a view of this: the codebooks to come see the change.
                latents[:, start:end] -= F.embedding(code, update)
        return torch.stack(codes, 1)

    @torch.no_grad()
    def decode(self, codes_BTn: Tensor) -> Tensor:
        """Decoder input (B, T, output_size) of the first n codebooks' codes; pad codes add nothing."""
        count, size = codes_BTn.shape[2], self.tables.shape[1]
        rows = codes_BTn + torch.arange(count, device=codes_BTn.device) * size
        total = F.embedding_bag(rows.flatten(0, 1), self.tables.flatten(0, 1), mode="sum")
        return F.linear(total, self.output_weight, self.output_bias).unflatten(0, codes_BTn.shape[:2])
