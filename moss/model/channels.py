"""The tables or heads of all codebooks laid one behind the other, so that one operation serves them all."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from moss.model.packed import PackedWeight, product
from moss.spec import IGNORE_LABEL


class ChannelTables:
    """Weights of several embeddings or heads of one width, which `fuse_` makes views of one contiguous tensor.

    No second copy is kept. Whatever moves or casts the parameters afterwards undoes the fusion; the results stay the
    same, only slower, until the next `fuse_`.
    """

    def __init__(self, modules: Sequence[nn.Module], *, zero_from: int | None = None) -> None:
        """Remember the modules.

        Args:
            modules: Each with a `weight` (rows, width).
            zero_from: Ids from here on have no row and embed as the zero vector; None where every id has a row.
        """
        self._modules = list(modules)
        self._zero_from = zero_from
        self._stacked: Tensor | None = None
        self._offsets: Tensor | None = None
        self._packed = PackedWeight()

    def fuse_(self) -> None:
        """Lay the weights one behind the other; nothing happens where they already are."""
        if self.stacked is not None:
            return
        with torch.inference_mode(False), torch.no_grad():
            weights = [weight_of(module) for module in self._modules]
            stacked = torch.cat([weight.data for weight in weights])
            starts = torch.tensor([0, *(len(weight) for weight in weights)]).cumsum(0)[:-1]
            for weight, start in zip(weights, starts.tolist(), strict=True):
                weight.data = stacked[start : start + len(weight)]
            self._stacked, self._offsets = stacked, starts.to(stacked.device)

    @property
    def modules(self) -> Sequence[nn.Module]:
        """Whose weights they are."""
        return self._modules

    def pack_(self) -> None:
        """Lay fused heads out for products on the CPU as well; tables of embeddings stay as they are."""
        if self.stacked is not None and all(isinstance(module, nn.Linear) for module in self._modules):
            self._packed.pack_(self.stacked, [weight_of(module) for module in self._modules])

    def product(self, x: Tensor, stacked: Tensor) -> Tensor:
        """All fused heads at once, in generation: (..., width) -> (..., rows of all)."""
        return product(x, stacked, None if torch.is_grad_enabled() else self.current())

    def current(self) -> Tensor | None:
        """The packed copy of `stacked`, if there is one of the present values."""
        return self._packed.current([weight_of(module) for module in self._modules])

    @property
    def stacked(self) -> Tensor | None:
        """All rows (rows of all modules, width) where the weights are fused, else None."""
        stacked = self._stacked
        if stacked is None:
            return None
        first, last = weight_of(self._modules[0]), weight_of(self._modules[-1])
        tail = stacked.data_ptr() + (len(stacked) - len(last)) * stacked.stride(0) * stacked.element_size()
        fused = first.data_ptr() == stacked.data_ptr() and last.data_ptr() == tail
        return stacked if fused and last.stride() == stacked.stride() else None

    def fused_embed(self, tokens: Tensor) -> Tensor:
        """Sum of the first tables' embeddings in one gather; the weights are fused.

        Args:
            tokens: Ids (batch, positions, n), for the first n tables.

        Returns:
            Shape (batch, positions, width).
        """
        stacked, offsets = self.stacked, self._offsets
        assert stacked is not None
        assert offsets is not None
        valid = None
        if self._zero_from is not None:
            kept = tokens < self._zero_from
            tokens, valid = tokens * kept, kept.to(stacked.dtype).flatten(0, -2)
        ids = (tokens + offsets[: tokens.shape[-1]]).flatten(0, -2)
        summed = functional.embedding_bag(ids, stacked, mode="sum", per_sample_weights=valid)
        return summed.view(*tokens.shape[:-1], stacked.shape[1])

    def add_to(self, embedded: Tensor, tokens: Tensor) -> Tensor:
        """Add the embeddings of the first tables, fused or one after the other.

        Args:
            embedded: Shape (batch, positions, width).
            tokens: Ids (batch, positions, n), for the first n tables.
        """
        # The gather of the fused tables has no gradient for one table's padding row to stay away from.
        if self.stacked is not None and not torch.is_grad_enabled():
            return embedded + self.fused_embed(tokens)
        for index in range(tokens.shape[-1]):
            embedded = embedded + self.embed(index, tokens[..., index])
        return embedded

    def embed(self, index: int, ids: Tensor) -> Tensor:
        """Embed ids of one table, shape (...) -> (..., width)."""
        table = self._modules[index]
        if self._zero_from is None:
            embedded = table(ids)
        else:
            kept = ids < self._zero_from
            embedded = table(ids * kept) * kept.unsqueeze(-1)
        assert isinstance(embedded, Tensor)
        return embedded

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of all heads, which have equally many ids: (..., width) -> (..., heads, ids)."""
        stacked = self.stacked
        if stacked is None:
            return torch.stack([module(hidden) for module in self._modules], dim=-2)
        together = self.product(hidden, stacked)
        return together.view(*hidden.shape[:-1], len(self._modules), -1)


def weight_of(module: nn.Module) -> Tensor:
    """The `weight` of an embedding or linear layer."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def embed_labels(table: nn.Embedding, labels: Tensor) -> Tensor:
    """Embed targets as inputs of what comes after them; IGNORE_LABEL is the zero vector."""
    kept = labels != IGNORE_LABEL
    embedded = table(labels * kept) * kept.unsqueeze(-1)
    assert isinstance(embedded, Tensor)
    return embedded
