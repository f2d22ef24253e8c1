"""MossTTSLocal v1.5: N depth positions per frame; the first says both "go on or stop" and code 0; heads are tied.

Source: MOSS-TTS moss_tts_local_v1.5/modeling_moss_tts.py and finetuning/sft.py:613-706 @58b20a0; parameter names are
the published ones.
Differs: the published backbone zeroes padded positions after every layer; here they are masked as keys, and the
hidden states of the other positions are the same.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen3Model

from moss.config.model import DepthPosition, LocalV15ModelConfig, StopHead
from moss.model.backbone import build_backbone
from moss.model.channels import ChannelTables, embed_labels, weight_of
from moss.model.depth import DepthFrame, linear
from moss.model.depth_gpt2 import Gpt2Depth
from moss.model.interface import Frame, Generator, Supervised, depth_supervised, labelled_rows
from moss.spec import IGNORE_LABEL


class LocalV15Model(Generator):
    """A frame is spoken in N depth positions, one a codebook; pad codes have no row and embed as zero."""

    config: LocalV15ModelConfig

    def __init__(self, config: LocalV15ModelConfig) -> None:
        """Build with fresh weights: normal(0, initializer_range), the stop head from the rows of its two ids."""
        super().__init__(config)
        width, std = config.hidden_size, config.initializer_range
        self.transformer = build_backbone(config)
        self.local_transformer = Gpt2Depth(
            width,
            num_layers=config.depth_num_layers,
            num_heads=config.depth_num_heads,
            intermediate_size=config.depth_intermediate_size,
            capacity=config.num_codebooks,
            rope_theta=config.depth_rope_theta if config.depth_position is DepthPosition.rope else None,
            activation=config.depth_activation,
            eps=config.depth_layer_norm_eps,
            std=std,
        )
        codebooks = range(config.num_codebooks)
        self.audio_embeddings = nn.ModuleList(nn.Embedding(config.codebook_size, width) for _ in codebooks)
        self.audio_lm_heads = nn.ModuleList(linear(width, config.codebook_size, std) for _ in codebooks)
        self.text_lm_head = nn.Linear(width, config.vocab_size, bias=False, device="meta")
        self.text_lm_head.weight = self.transformer.embed_tokens.weight
        for table, head in zip(self.audio_embeddings, self.audio_lm_heads, strict=True):
            table.weight = head.weight
        self.local_text_lm_head = None
        if config.stop_head is StopHead.binary:
            self.local_text_lm_head = linear(width, 2, std)
            with torch.no_grad():
                self.local_text_lm_head.weight.copy_(self.text_lm_head.weight[self._stop_ids()])
        self._codes = ChannelTables(list(self.audio_embeddings), zero_from=config.codebook_size)

    @property
    def backbone(self) -> Qwen3Model:
        """The decoder over positions."""
        return self.transformer

    def tables(self) -> Sequence[ChannelTables]:
        """The code embeddings, which are the code heads too."""
        return [self._codes]

    def embed(self, tokens: Tensor, num_codebooks: int | None = None) -> Tensor:
        """Sum of the channels' embeddings; a pad code adds nothing. See `Generator`."""
        end = 1 + (num_codebooks or self.config.num_codebooks)
        return self._codes.add_to(self.transformer.embed_tokens(tokens[..., 0]), tokens[..., 1:end])

    def supervised(self, hidden: Tensor, labels: Tensor, frames: Tensor | None = None) -> Supervised:
        """The depth network's states of the labelled positions; text ids become "go on" and "stop". See `Generator`.

        With the binary stop head other text ids have no target.
        """
        rows, labels = labelled_rows(hidden, labels)
        seen = depth_supervised(rows, self._stop_labels(labels), frames, self.depth_states)
        return replace(seen, states=self._by_channel(seen.states))

    def depth_states(self, hidden: Tensor, labels: Tensor, num_codebooks: int | None = None) -> Tensor:
        """Inputs of the code heads; the first is the stop head's too.

        Args:
            hidden: Hidden states, shape (rows, width).
            labels: What they predict, shape (rows, channels); IGNORE_LABEL is the zero vector as an input.
            num_codebooks: Only the first codebooks; None for all.

        Returns:
            Shape (rows, codebooks, width).
        """
        count = num_codebooks or self.config.num_codebooks
        given = [
            embed_labels(cast(nn.Embedding, self.audio_embeddings[index]), labels[:, 1 + index])
            for index in range(count - 1)
        ]
        states = self.local_transformer(torch.stack([hidden, *given], dim=1))
        assert isinstance(states, Tensor)
        return states

    def head_weight(self, channel: int) -> Tensor:
        """The stop head (2, width) or the text table for channel 0; a codebook's table otherwise."""
        if channel > 0:
            return weight_of(self.audio_lm_heads[channel - 1])
        return weight_of(self.text_lm_head if self.local_text_lm_head is None else self.local_text_lm_head)

    def begin_frame(self, hidden: Tensor, num_codebooks: int | None = None) -> Frame:
        """Channel 0 has two ids: 0 goes on, 1 stops; it is not an input of the codes. See `Generator`."""
        count = num_codebooks or self.config.num_codebooks
        return DepthFrame(
            self.local_transformer,
            hidden,
            positions=count,
            embed=lambda channel, ids: self._codes.embed(channel - 1, ids),
            head=self._logits,
            fed=range(1, count),
        )

    def _logits(self, channel: int, spoken: Tensor) -> Tensor:
        weight = self.head_weight(channel)
        if channel == 0 and self.local_text_lm_head is None:
            weight = weight[self._stop_ids()]
        return functional.linear(spoken, weight)

    def _stop_ids(self) -> list[int]:
        return [self.config.audio_assistant_slot_token_id, self.config.audio_end_token_id]

    def _stop_labels(self, labels: Tensor) -> Tensor:
        """Labels with channel 0 in the numbering of the stop head."""
        if self.local_text_lm_head is None:
            return labels
        stop = torch.full_like(labels[..., 0], IGNORE_LABEL)
        for index, text_id in enumerate(self._stop_ids()):
            stop = stop.masked_fill(labels[..., 0] == text_id, index)
        return torch.cat([stop.unsqueeze(-1), labels[..., 1:]], dim=-1)

    @staticmethod
    def _by_channel(states: Tensor) -> Tensor:
        """(rows, codebooks, width) -> (rows, channels, width): the stop head reads what code 0 is read from."""
        return torch.cat([states[:, :1], states], dim=1)
