"""MossTTSDelay: one backbone, one text head and N audio heads; codebook k runs k positions behind.

Source: MOSS-TTS moss_tts_delay/modeling_moss_tts.py @58b20a0; parameter names are the published ones.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from transformers import Qwen3Model

from moss.config.model import DelayModelConfig
from moss.model.backbone import build_backbone
from moss.model.channels import ChannelTables
from moss.model.interface import Frame, Generator, Supervised, labelled_rows


class DelayModel(Generator):
    """Text and N delayed codebooks predicted side by side at every position."""

    config: DelayModelConfig

    def __init__(self, config: DelayModelConfig) -> None:
        """Build with fresh weights: normal(0, initializer_range), like the published class."""
        super().__init__(config)
        rows = config.codebook_size + 1
        self.language_model = build_backbone(config)
        self.emb_ext = nn.ModuleList(nn.Embedding(rows, config.hidden_size) for _ in range(config.num_codebooks))
        heads = [config.vocab_size] + [rows] * config.num_codebooks
        self.lm_heads = nn.ModuleList(nn.Linear(config.hidden_size, size, bias=False) for size in heads)
        for module in [*self.emb_ext, *self.lm_heads]:
            nn.init.normal_(module.weight, std=config.initializer_range)
        self._embeddings = ChannelTables(list(self.emb_ext))
        self._code_heads = ChannelTables(list(self.lm_heads[1:]))

    @property
    def backbone(self) -> Qwen3Model:
        """The decoder over positions."""
        return self.language_model

    def tables(self) -> Sequence[ChannelTables]:
        """The code embeddings and the code heads."""
        return [self._embeddings, self._code_heads]

    def embed(self, tokens: Tensor, num_codebooks: int | None = None) -> Tensor:
        """Sum of the channels' embeddings; pad codes have a trained row of their own. See `Generator`."""
        end = 1 + (num_codebooks or self.config.num_codebooks)
        return self._embeddings.add_to(self.language_model.embed_tokens(tokens[..., 0]), tokens[..., 1:end])

    def supervised(self, hidden: Tensor, labels: Tensor, frames: Tensor | None = None) -> Supervised:
        """All channels read the position's hidden state; there are no frames to leave out. See `Generator`."""
        assert frames is None, "MossTTSDelay has no depth network to save on"
        states, kept = labelled_rows(hidden, labels)
        return Supervised(states.unsqueeze(1).expand(-1, kept.shape[1], -1), kept)

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

    def code_logits(self, hidden: Tensor) -> Tensor:
        """Logits of all codebooks (..., codebooks, codebook_size), in one matrix product on a fused model.

        Args:
            hidden: Shape (..., width).
        """
        return self._code_heads.logits(hidden)[..., : self.config.codebook_size]

    def begin_frame(self, hidden: Tensor, num_codebooks: int | None = None) -> Frame:
        """All channels of a position are predicted at once. See `Generator`."""
        return _DelayFrame(self, hidden)


class _DelayFrame:
    """One position: what is drawn for a channel does not reach the others."""

    def __init__(self, model: DelayModel, hidden: Tensor) -> None:
        self._model, self._hidden = model, hidden

    def logits(self, channel: int) -> Tensor:
        return self._model.channel_logits(self._hidden, channel)

    def feed(self, channel: int, ids: Tensor) -> None:
        pass
