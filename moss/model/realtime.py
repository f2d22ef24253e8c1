"""MossTTSRealtime: text is given, a rotary depth transformer with tables of its own speaks the codes of a frame.

Source: MOSS-TTS moss_tts_realtime/mossttsrealtime/modeling_mossttsrealtime.py and modeling_mossttsrealtime_local.py
@58b20a0; parameter names are the published ones.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen3Model

from moss.config.model import RealtimeModelConfig
from moss.model.backbone import build_backbone
from moss.model.channels import ChannelTables, weight_of
from moss.model.depth import DepthFrame, DepthTransformer, linear
from moss.model.interface import Frame, Generator, Supervised, labelled_rows, without_codes_outside
from moss.model.local import padded_embedding
from moss.spec import IGNORE_LABEL

_EXTRA_CODES = 3
"""Rows beyond the codes: pad, begin and end of a spoken turn."""


class RealtimeDepth(DepthTransformer):
    """The depth transformer with the tables of codebooks 0 to N - 2."""

    def __init__(self, config: RealtimeModelConfig) -> None:
        super().__init__(
            config.hidden_size,
            num_layers=config.depth_num_layers,
            num_heads=config.depth_num_heads,
            num_kv_heads=config.depth_num_kv_heads,
            head_dim=config.depth_head_dim,
            intermediate_size=config.depth_intermediate_size,
            capacity=config.num_codebooks,
            rope_theta=config.depth_rope_theta,
            eps=config.rms_norm_eps,
            std=config.initializer_range,
        )
        self.embed_tokens = nn.ModuleList(_code_table(config) for _ in range(config.num_codebooks - 1))


class RealtimeDepthHeads(nn.Module):
    """The depth transformer and one head a codebook."""

    def __init__(self, config: RealtimeModelConfig) -> None:
        super().__init__()
        self.model = RealtimeDepth(config)
        self.local_lm_heads = nn.ModuleList(
            linear(config.hidden_size, config.codebook_size + _EXTRA_CODES, config.initializer_range)
            for _ in range(config.num_codebooks)
        )


class RealtimeModel(Generator):
    """A frame is spoken in N depth positions; channel 0 is read, never predicted."""

    config: RealtimeModelConfig

    def __init__(self, config: RealtimeModelConfig) -> None:
        """Build with fresh weights: normal(0, initializer_range), zero padding rows, unit norms."""
        super().__init__(config)
        text = padded_embedding(config.vocab_size, config.pad_token_id, config.hidden_size, config.initializer_range)
        self.embed_tokens = nn.ModuleList([text, *(_code_table(config) for _ in range(config.num_codebooks))])
        self.language_model = build_backbone(config)
        # Part of every published checkpoint, read by nothing.
        self.language_model.embed_tokens.requires_grad_(False)
        self.local_transformer = RealtimeDepthHeads(config)
        self._codes = ChannelTables(list(self.embed_tokens[1:]))

    @property
    def backbone(self) -> Qwen3Model:
        """The decoder over positions."""
        return self.language_model

    def tables(self) -> Sequence[ChannelTables]:
        """The code embeddings of the backbone."""
        return [self._codes]

    def embed(self, tokens: Tensor, num_codebooks: int | None = None) -> Tensor:
        """Sum of the channels' embeddings; padding rows are added as the checkpoint has them. See `Generator`."""
        end = 1 + (num_codebooks or self.config.num_codebooks)
        return self._codes.add_to(self.embed_tokens[0](tokens[..., 0]), tokens[..., 1:end])

    def supervised(self, hidden: Tensor, labels: Tensor, frames: Tensor | None = None) -> Supervised:
        """The depth transformer's states of the labelled positions; the text channel has no target. See `Generator`."""
        rows, labels = labelled_rows(hidden, labels)
        kept = functional.pad(labels[:, 1:], (1, 0), value=IGNORE_LABEL)
        if frames is None:
            return Supervised(_by_channel(self.depth_states(rows, kept)), kept)
        scales = without_codes_outside(kept, frames)[1]
        # Without a text head nothing of the other rows is left to compute.
        rows, kept = rows[frames], kept[frames]
        return Supervised(_by_channel(self.depth_states(rows, kept)), kept, scales)

    def depth_states(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Inputs of the code heads.

        Args:
            hidden: Hidden states, shape (rows, width).
            labels: What they predict, shape (rows, channels); IGNORE_LABEL is the pad code as an input.

        Returns:
            Shape (rows, codebooks, width).
        """
        network = self.local_transformer.model
        codes = labels[:, 1:].masked_fill(labels[:, 1:] == IGNORE_LABEL, self.config.codebook_size)
        given = [table(codes[:, index]) for index, table in enumerate(network.embed_tokens)]
        states = network(torch.stack([hidden, *given], dim=1))
        assert isinstance(states, Tensor)
        return states

    def head_weight(self, channel: int) -> Tensor:
        """A codebook's head, every row of which competes; channel 0 has none, and a row of zeros stands for it."""
        if channel == 0:
            return weight_of(self.local_transformer.local_lm_heads[0]).new_zeros(1, self.config.hidden_size)
        return weight_of(self.local_transformer.local_lm_heads[channel - 1])

    def begin_frame(self, hidden: Tensor, num_codebooks: int | None = None) -> Frame:
        """Starts at channel 1; no code is masked, as published. See `Generator`."""
        count = num_codebooks or self.config.num_codebooks
        network, heads = self.local_transformer.model, self.local_transformer.local_lm_heads
        return DepthFrame(
            network,
            hidden,
            positions=count,
            embed=lambda channel, ids: cast(Tensor, network.embed_tokens[channel - 1](ids)),
            head=lambda channel, spoken: cast(Tensor, heads[channel - 1](spoken)),
            fed=range(1, count),
        )


def _by_channel(states: Tensor) -> Tensor:
    """(rows, codebooks, width) -> (rows, channels, width) with nothing in the text channel."""
    return functional.pad(states, (0, 0, 1, 0))


def _code_table(config: RealtimeModelConfig) -> nn.Embedding:
    rows = config.codebook_size + _EXTRA_CODES
    return padded_embedding(rows, config.codebook_size, config.hidden_size, config.initializer_range)
