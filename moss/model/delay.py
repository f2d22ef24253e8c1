"""MossTTSDelay: one backbone, one text head and N audio heads; codebook k runs k positions behind.

Source: MOSS-TTS moss_tts_delay/modeling_moss_tts.py @58b20a0; parameter names are the published ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from moss.config.model import DelayModelConfig
from moss.model.backbone import build_backbone


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """What one forward pass gives: final normed hidden states (batch, positions, width).

    Logits are made from them by `DelayModel.channel_logits` only where they are needed. They are aligned with the
    inputs: position p predicts what the labels hold at p.
    """

    hidden: Tensor
    cache: Cache | None = None


class DelayModel(nn.Module):
    """Text and N delayed codebooks predicted side by side at every position."""

    def __init__(self, config: DelayModelConfig) -> None:
        """Build with fresh weights: normal(0, initializer_range), like the published class."""
        super().__init__()
        self.config = config
        rows = config.codebook_size + 1
        self.language_model = build_backbone(config)
        self.emb_ext = nn.ModuleList(nn.Embedding(rows, config.hidden_size) for _ in range(config.num_codebooks))
        heads = [config.vocab_size] + [rows] * config.num_codebooks
        self.lm_heads = nn.ModuleList(nn.Linear(config.hidden_size, size, bias=False) for size in heads)
        for module in [*self.emb_ext, *self.lm_heads]:
            nn.init.normal_(module.weight, std=config.initializer_range)

    @property
    def num_channels(self) -> int:
        """Text and codebooks."""
        return 1 + self.config.num_codebooks

    def embed(self, tokens: Tensor) -> Tensor:
        """Sum of the channels' embeddings; pad codes have a trained row of their own.

        Args:
            tokens: Ids, shape (batch, positions, channels).

        Returns:
            Shape (batch, positions, width).
        """
        embedded = self.language_model.embed_tokens(tokens[..., 0])
        for index, table in enumerate(self.emb_ext):
            embedded = embedded + table(tokens[..., index + 1])
        return embedded

    def forward(
        self,
        tokens: Tensor,
        *,
        document_lengths: Sequence[int] | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        position_ids: Tensor | None = None,
    ) -> ModelOutput:
        """Run the backbone.

        Args:
            tokens: Ids, shape (batch, positions, channels).
            document_lengths: For a packed row (batch 1): positions of each document; they do not see each other.
            attention_mask: For a padded batch: (batch, all positions so far), False where padded.
            cache: A transformers cache that is read and extended in place.
            position_ids: Rotary positions (batch, positions); made from the documents or the mask when absent.
        """
        arguments: dict[str, Any] = {}
        mask: Any = attention_mask
        if document_lengths is not None:
            position_ids = torch.cat([torch.arange(length, device=tokens.device) for length in document_lengths])[None]
            # A dict of ready masks keeps transformers from building positions x positions.
            mask = {"full_attention": None}
            arguments["document_lengths"] = list(document_lengths)
        elif position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        output = self.language_model(
            inputs_embeds=self.embed(tokens),
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
            **arguments,
        )
        return ModelOutput(hidden=output.last_hidden_state, cache=cache)

    def head_weight(self, channel: int) -> Tensor:
        """Rows of a channel's head that may be predicted, shape (ids, width): the pad code never is."""
        weight = self.lm_heads[channel].weight
        assert isinstance(weight, Tensor)
        return weight if channel == 0 else weight[: self.config.codebook_size]

    def channel_logits(self, hidden: Tensor, channel: int) -> Tensor:
        """Logits of one channel as the published model prints them, the pad code's column at -inf.

        Args:
            hidden: Shape (..., width).
            channel: 0 for text, k + 1 for codebook k.
        """
        logits = self.lm_heads[channel](hidden)
        if channel > 0:
            logits = logits.clone()
            logits[..., self.config.codebook_size] = float("-inf")
        assert isinstance(logits, Tensor)
        return logits
