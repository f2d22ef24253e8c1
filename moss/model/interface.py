"""What every generator offers: the shared backbone pass, what its heads see in training, one frame in generation."""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Qwen3Model
from transformers.cache_utils import Cache

from moss.config.model import ModelConfig
from moss.model.attention import PACKED_ATTENTION
from moss.model.channels import ChannelTables
from moss.model.depth import DepthNetwork, QwenAttention, SwiGlu
from moss.model.packed import PackableLinear, worth_packing
from moss.spec import IGNORE_LABEL


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """What one forward pass gives: final normed hidden states (batch, positions, width).

    They are aligned with the inputs: position p predicts what the labels hold at p. Logits are made from them only
    where they are needed: by `Generator.supervised` in training, by `Generator.begin_frame` in generation.
    """

    hidden: Tensor
    cache: Cache | None = None


@dataclass(frozen=True, slots=True)
class Supervised:
    """What the heads see of a batch: one row for each position with a label.

    Attributes:
        states: Inputs of the heads, shape (rows, channels, width); a view where all channels share a state.
        labels: Ids in the numbering of `Generator.head_weight`, shape (rows, channels); IGNORE_LABEL where none.
        scales: Factor of each channel's summed loss, shape (channels,), that makes it unbiased when the codes of
            only a share of the rows were computed; None for all rows.
    """

    states: Tensor
    labels: Tensor
    scales: Tensor | None = None


class Frame(Protocol):
    """The walk through the channels of one frame, for a batch; `logits` and `feed` alternate, channel by channel."""

    def logits(self, channel: int) -> Tensor:
        """Raw logits (batch, ids) of a channel whose predecessors were fed; -inf where an id may never be drawn."""
        ...

    def feed(self, channel: int, ids: Tensor) -> None:
        """Take the drawn ids (batch,) of a channel; what comes after them is predicted from them."""
        ...


class Generator(nn.Module, abc.ABC):
    """Base of all architectures: channels in, hidden states out, and what its heads make of them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    @property
    @abc.abstractmethod
    def backbone(self) -> Qwen3Model:
        """The decoder over positions."""

    @property
    def num_channels(self) -> int:
        """Text and codebooks."""
        return 1 + self.config.num_codebooks

    @abc.abstractmethod
    def embed(self, tokens: Tensor, num_codebooks: int | None = None) -> Tensor:
        """Sum of the channels' embeddings.

        Args:
            tokens: Ids, shape (batch, positions, channels).
            num_codebooks: Sum only so many codebooks; None sums all.

        Returns:
            Shape (batch, positions, width).
        """

    @abc.abstractmethod
    def supervised(self, hidden: Tensor, labels: Tensor, frames: Tensor | None = None) -> Supervised:
        """Inputs of the heads where there is a label.

        Args:
            hidden: Hidden states, shape (..., width).
            labels: What each position predicts, shape (..., channels); IGNORE_LABEL where there is no target.
            frames: Which rows with a label get their codes computed, bool (rows,); None for all. The text channel is
                computed on every row.
        """

    @abc.abstractmethod
    def head_weight(self, channel: int) -> Tensor:
        """Rows of a channel's head that compete in training, shape (ids, width)."""

    @abc.abstractmethod
    def begin_frame(self, hidden: Tensor, num_codebooks: int | None = None) -> Frame:
        """Start on the frame that a position predicts.

        Args:
            hidden: Last hidden state of each sample, shape (batch, width).
            num_codebooks: Codebooks of the frame; None for all.
        """

    @abc.abstractmethod
    def tables(self) -> Sequence[ChannelTables]:
        """Weights that `fuse_` lays one behind the other."""

    def fuse_(self) -> None:
        """Lay the weights of all channels one behind the other, for fewer and larger operations in generation.

        Call it after weights, device and dtype are final, before generating; a second call changes nothing. The
        parameters become views of shared memory; training and saving take them as they are. On a CPU the weights of
        a model that is not too large are packed for its products beside that (see `moss.model.packed`).
        """
        for table in self.tables():
            table.fuse_()
        for module in self.modules():
            if isinstance(module, DepthNetwork | SwiGlu):
                module.fuse_()
        if worth_packing(self):
            self._pack_()

    def _pack_(self) -> None:
        stacks = [*self.tables()]
        stacks += [module.fused for module in self.modules() if isinstance(module, SwiGlu | QwenAttention)]
        for stack in stacks:
            stack.pack_()
        together = {id(module) for stack in stacks if stack.stacked is not None for module in stack.modules}
        for module in self.modules():
            if isinstance(module, PackableLinear) and id(module) not in together:
                module.packed.pack_(module.weight)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute the blocks' activations in the backward pass instead of keeping them, or keep them again."""
        if enabled:
            self.backbone.activation_checkpointing_enable({"use_reentrant": False})
        else:
            self.backbone.activation_checkpointing_disable()
        for module in self.modules():
            if isinstance(module, DepthNetwork):
                module.checkpointing = enabled

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
            # Any other attention would ignore the documents, and without a mask even the order.
            assert self.backbone.config._attn_implementation == PACKED_ATTENTION
            position_ids = torch.cat([torch.arange(length, device=tokens.device) for length in document_lengths])[None]
            # A dict of ready masks keeps transformers from building positions x positions.
            mask = {"full_attention": None}
            arguments["document_lengths"] = list(document_lengths)
        elif position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        output = self.backbone(
            inputs_embeds=self.embed(tokens),
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
            **arguments,
        )
        return ModelOutput(hidden=output.last_hidden_state, cache=cache)


def labelled_rows(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The positions that have a label in some channel.

    Args:
        hidden: Shape (..., width).
        labels: Shape (..., channels).

    Returns:
        Their hidden states (rows, width) and labels (rows, channels), in order.
    """
    flat = labels.reshape(-1, labels.shape[-1])
    rows = (flat != IGNORE_LABEL).any(dim=1).nonzero().squeeze(1)
    return hidden.reshape(-1, hidden.shape[-1])[rows], flat[rows]


def depth_supervised(
    rows: Tensor, labels: Tensor, frames: Tensor | None, states: Callable[[Tensor, Tensor, int | None], Tensor]
) -> Supervised:
    """What the heads behind a depth network see, whose first output needs no code.

    Args:
        rows: Hidden states of the labelled positions, shape (rows, width).
        labels: Shape (rows, channels).
        frames: See `Generator.supervised`.
        states: (rows, labels, n) -> the first n outputs of the depth network, all for None.
    """
    if frames is None:
        return Supervised(states(rows, labels, None), labels)
    kept, scales = without_codes_outside(labels, frames)
    whole = states(rows[frames], labels[frames], None)
    first = states(rows[~frames], labels[~frames], 1)
    return Supervised(rows_together(frames, whole, first), kept, scales)


def without_codes_outside(labels: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and scales when the codes of some rows are left out.

    Args:
        labels: Shape (rows, channels).
        frames: Rows whose codes stay, bool (rows,).

    Returns:
        The labels with IGNORE_LABEL for the codes of the other rows, and `Supervised.scales`.
    """
    assert frames.shape == labels.shape[:1], "one choice for each row that has a label"
    kept = labels.clone()
    kept[:, 1:].masked_fill_(~frames[:, None], IGNORE_LABEL)
    scales = torch.ones(labels.shape[1], device=labels.device)
    scales[1:] = len(labels) / frames.sum().clamp(min=1)
    return kept, scales


def rows_together(frames: Tensor, whole: Tensor, first: Tensor) -> Tensor:
    """States of the rows whose codes were computed and of those that have only the first channel, in their order.

    Args:
        frames: Which rows were computed whole, bool (rows,).
        whole: Their states, shape (whole rows, channels, width).
        first: The other rows' states, shape (other rows, 1, width).

    Returns:
        Shape (rows, channels, width); zero where nothing was computed.
    """
    states = whole.new_zeros(len(frames), *whole.shape[1:])
    states = states.index_put((frames.nonzero().squeeze(1),), whole)
    others = (~frames).nonzero().squeeze(1)
    return states.index_put((others, torch.zeros_like(others)), first.squeeze(1).to(states.dtype))
