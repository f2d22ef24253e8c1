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
        tables = []
        for layer in self.layers:
            rows = layer.out_proj(layer.codebook.weight)
            tables.append(torch.cat((rows, rows.new_zeros(1, rows.shape[1]))))
        return FoldedQuantizer(
            input_weight=self.input_proj.weight(),
            input_bias=self.input_proj.bias.detach().clone(),
            latent_weights=torch.stack([layer.in_proj.weight() for layer in self.layers]),
            latent_biases=torch.stack([layer.in_proj.bias for layer in self.layers]),
            unit_rows=torch.stack([F.normalize(layer.codebook.weight, dim=-1) for layer in self.layers]),
            tables=torch.stack(tables),
            output_weight=self.output_proj.weight(),
            output_bias=self.output_proj.bias.detach().clone(),
        )


@dataclass(frozen=True, slots=True)
class FoldedQuantizer:
    """The quantizer with its projections multiplied out. K codebooks, S rows, c code size, R residual size."""

    input_weight: Tensor
    input_bias: Tensor
    latent_weights: Tensor
    """(K, c, R)"""
    latent_biases: Tensor
    """(K, c)"""
    unit_rows: Tensor
    """(K, S, c)"""
    tables: Tensor
    """(K, S + 1, R): each row projected back; the last row is zero, so that the pad code contributes nothing."""
    output_weight: Tensor
    output_bias: Tensor

    @torch.no_grad()
    def encode(self, hidden_BTD: Tensor, num_codebooks: int | None = None) -> Tensor:
        """Codes (B, T, n) of the first n codebooks; equal to the first n of a full encode."""
        residual = F.linear(hidden_BTD.float(), self.input_weight, self.input_bias)
        codes = []
        for i in range(num_codebooks or len(self.tables)):
            latent = F.linear(residual, self.latent_weights[i], self.latent_biases[i])
            codes.append((latent @ self.unit_rows[i].T).argmax(-1))
            residual = residual - self.tables[i][codes[-1]]
        return torch.stack(codes, -1)

    @torch.no_grad()
    def decode(self, codes_BTn: Tensor) -> Tensor:
        """Decoder input (B, T, output_size) of the first n codebooks' codes; pad codes add nothing."""
        total = self.tables.new_zeros(*codes_BTn.shape[:2], self.tables.shape[2])
        for i in range(codes_BTn.shape[2]):
            total = total + self.tables[i][codes_BTn[:, :, i]]
        return F.linear(total, self.output_weight, self.output_bias)
