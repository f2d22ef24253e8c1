"""What the loader hands to the model: one packed row of examples, with the cursor of the run inside."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """One micro-batch.

    Attributes:
        tokens: Inputs, int64 (1, positions, channels).
        labels: Targets aligned with them, same shape; IGNORE_LABEL where there is none.
        document_lengths: Positions of each packed example.
        utterance_ids: Their ids; of a conversation, its first turn's.
        step: Optimizer step that this row belongs to.
        cursor: Step to go on with once this row has been trained: what a checkpoint records.
        step_counts: Targets per channel over the whole step, all ranks and rows, int64 (channels,).
        row: Number of the row from the start of training, over all ranks; of validation, in the set.
    """

    tokens: Tensor
    labels: Tensor
    document_lengths: Sequence[int]
    utterance_ids: Sequence[str]
    step: int
    cursor: int
    step_counts: Tensor
    row: int = 0

    @property
    def num_positions(self) -> int:
        """Positions of the row."""
        return self.tokens.shape[1]

    def to(self, device: torch.device) -> "TokenBatch":
        """The same batch on a device."""
        return replace(
            self,
            tokens=self.tokens.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            step_counts=self.step_counts.to(device, non_blocking=True),
        )
