"""MossTTSLocal v1: one position per frame; a depth transformer speaks the text id, then the codes of the frame.

Source: MOSS-TTS moss_tts_local/modeling_moss_tts.py @58b20a0; parameter names are the published ones.
Differs: the depth transformer runs on positions with a label only and is causal whatever attention is chosen (the
published class is bidirectional under eager attention); in generation it keeps its keys and values.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen3Model

from moss.config.model import LocalModelConfig
from moss.model.backbone import build_backbone
from moss.model.channels import ChannelTables, embed_labels, weight_of
from moss.model.depth import DepthFrame, DepthTransformer, SwiGlu, linear
from moss.model.interface import Frame, Generator, Supervised, depth_supervised, labelled_rows

_HEAD_NORM_EPS = 1e-6


class PlainRmsNorm(nn.Module):
    """Root-mean-square norm computed in the dtype of its input, unlike the backbone's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + _HEAD_NORM_EPS) * self.weight


class LocalBackbone(nn.Module):
    """The decoder and the tables of all channels; the decoder's own text table is unused but part of checkpoints."""

    def __init__(self, config: LocalModelConfig) -> None:
        super().__init__()
        width = config.hidden_size
        sizes = [(config.vocab_size, config.pad_token_id)]
        sizes += [(config.codebook_size + 1, config.codebook_size)] * config.num_codebooks
        self.embedding_list = nn.ModuleList(padded_embedding(*size, width, config.initializer_range) for size in sizes)
        self.language_model = build_backbone(config)
        self.language_model.embed_tokens.requires_grad_(False)


class LocalModel(Generator):
    """A frame is spoken in 1 + N depth positions: the text id, then codebook after codebook."""

    config: LocalModelConfig

    def __init__(self, config: LocalModelConfig) -> None:
        """Build with fresh weights: normal(0, initializer_range), zero padding rows, unit norms."""
        super().__init__(config)
        width, depth, std = config.hidden_size, config.depth_hidden_size, config.initializer_range
        self.model = LocalBackbone(config)
        self.local_transformer = DepthTransformer(
            depth,
            num_layers=config.depth_num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.depth_intermediate_size,
            capacity=1 + config.num_codebooks,
            rope_theta=None,
            eps=config.rms_norm_eps,
            std=std,
        )
        channels = range(1 + config.num_codebooks)
        self.speech_embedding_to_local_mlp = SwiGlu(width, config.depth_mlp_size, depth, std)
        self.local_to_speech_embedding_mlps = nn.ModuleList(
            SwiGlu(depth, config.depth_mlp_size, width, std) for _ in channels
        )
        self.layer_norm_before_lm_heads = nn.ModuleList(PlainRmsNorm(width) for _ in channels)
        self.lm_heads = nn.ModuleList(
            linear(width, config.codebook_size + 1 if channel else config.vocab_size, std) for channel in channels
        )
        self._codes = ChannelTables(list(self.model.embedding_list[1:]))

    @property
    def backbone(self) -> Qwen3Model:
        """The decoder over positions."""
        return self.model.language_model

    def tables(self) -> Sequence[ChannelTables]:
        """The code embeddings."""
        return [self._codes]

    def embed(self, tokens: Tensor, num_codebooks: int | None = None) -> Tensor:
        """Sum of the channels' embeddings; padding rows are added as the checkpoint has them. See `Generator`."""
        end = 1 + (num_codebooks or self.config.num_codebooks)
        return self._codes.add_to(self.model.embedding_list[0](tokens[..., 0]), tokens[..., 1:end])

    def supervised(self, hidden: Tensor, labels: Tensor, frames: Tensor | None = None) -> Supervised:
        """The depth transformer's states of the labelled positions. See `Generator`."""
        # The text channel comes first in depth, so one position is enough for the rows without codes.
        return depth_supervised(*labelled_rows(hidden, labels), frames, self.depth_states)

    def depth_states(self, hidden: Tensor, labels: Tensor, num_channels: int | None = None) -> Tensor:
        """Inputs of the heads.

        Args:
            hidden: Hidden states, shape (rows, width).
            labels: What they predict, shape (rows, channels); IGNORE_LABEL is the zero vector as an input.
            num_channels: Only the first channels; None for all.

        Returns:
            Shape (rows, channels, width).
        """
        count = num_channels or self.num_channels
        given = [
            embed_labels(cast(nn.Embedding, self.model.embedding_list[channel]), labels[:, channel])
            for channel in range(count - 1)
        ]
        inputs = self.speech_embedding_to_local_mlp(torch.stack([hidden, *given], dim=1))
        spoken = self.local_transformer(inputs)
        return torch.stack([self._to_head(channel, spoken[:, channel]) for channel in range(count)], dim=1)

    def head_weight(self, channel: int) -> Tensor:
        """All rows of a channel's head; the pad code competes in training, as published."""
        return weight_of(self.lm_heads[channel])

    def begin_frame(
        self, hidden: Tensor, num_codebooks: int | None = None, text_ids: Sequence[int] | None = None
    ) -> Frame:
        """Text first, then the codes. See `Generator`.

        Args:
            hidden: See `Generator`.
            num_codebooks: See `Generator`.
            text_ids: Compute the text logits of these ids only, in this order.
        """
        count = num_codebooks or self.config.num_codebooks
        return DepthFrame(
            self.local_transformer,
            self.speech_embedding_to_local_mlp(hidden),
            positions=1 + count,
            embed=self._depth_input,
            head=lambda channel, spoken: self._logits(channel, spoken, text_ids),
            fed=range(count),
        )

    def _depth_input(self, channel: int, ids: Tensor) -> Tensor:
        embedded = self.model.embedding_list[channel](ids)
        return cast(Tensor, self.speech_embedding_to_local_mlp(embedded))

    def _to_head(self, channel: int, spoken: Tensor) -> Tensor:
        widened = self.local_to_speech_embedding_mlps[channel](spoken)
        return cast(Tensor, self.layer_norm_before_lm_heads[channel](widened))

    def _logits(self, channel: int, spoken: Tensor, text_ids: Sequence[int] | None) -> Tensor:
        state = self._to_head(channel, spoken)
        if channel == 0 and text_ids is not None:
            return functional.linear(state, self.head_weight(0)[list(text_ids)])
        logits = cast(Tensor, self.lm_heads[channel](state))
        if channel > 0:
            logits[..., self.config.codebook_size] = float("-inf")
        return logits


def padded_embedding(rows: int, padding: int, width: int, std: float) -> nn.Embedding:
    """A table with normal weights of `std` whose padding row is zero and gets no gradient."""
    table = nn.Embedding(rows, width, padding_idx=padding)
    with torch.no_grad():
        table.weight.normal_(std=std)
        table.weight[padding] = 0
    return table
