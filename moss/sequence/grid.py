"""Blocks of positions: counted before they are laid out, so that lengths cost no codes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moss.errors import DataError
from moss.sequence.delay import apply_delay
from moss.sequence.prompt import Clip, Placeholder

Encode = Callable[[str], list[int]]
"""A text tokenizer: plain text to ids, without parsing control tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Positions that follow each other.

    Attributes:
        ids: Channel 0, one a position.
        codes: The audio among them, shape (frames, codebooks).
        first: Position of the first frame within the block.
        delayed: Codebook k stands k positions later.
        marks: Codes without a frame of their own, in codebook 0, by position within the block.
    """

    ids: Sequence[int]
    codes: Clip | None = None
    first: int = 0
    delayed: bool = False
    marks: Mapping[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


def num_positions(blocks: Sequence[Block]) -> int:
    """Positions of all blocks."""
    return sum(len(block) for block in blocks)


def lay_out(blocks: Sequence[Block], num_codebooks: int, codebook_size: int) -> Tensor:
    """The grid of blocks, shape (positions, channels); the pad code is `codebook_size`.

    Raises:
        DataError: Codes that are missing, empty, of another width, or outside the codebook.
    """
    rows = torch.full((num_positions(blocks), 1 + num_codebooks), codebook_size, dtype=torch.long)
    start = 0
    for block in blocks:
        rows[start : start + len(block), 0] = torch.tensor(list(block.ids), dtype=torch.long)
        if block.codes is not None:
            codes = checked_codes(block.codes, num_codebooks, codebook_size)
            codes = apply_delay(codes, codebook_size) if block.delayed else codes
            rows[start + block.first : start + block.first + len(codes), 1:] = codes
        for position, code in block.marks.items():
            rows[start + position, 1] = code
        start += len(block)
    return rows


def checked_codes(codes: Clip, num_codebooks: int, codebook_size: int) -> Tensor:
    """The codes as int64, shape (frames, codebooks).

    Raises:
        DataError: They are missing, empty, of another width, or outside the codebook.
    """
    if isinstance(codes, Placeholder):
        raise DataError(
            f"a placeholder of {codes.frames} frames stands where codes are needed; placeholders only count positions"
        )
    if codes.dim() != 2 or codes.shape[1] != num_codebooks or len(codes) == 0:
        raise DataError(
            f"expected codes of shape (frames, {num_codebooks}), got {tuple(codes.shape)}; "
            "encode with as many codebooks as the model has"
        )
    low, high = (int(value) for value in codes.aminmax())
    if low < 0 or high >= codebook_size:
        raise DataError(
            f"codes range over {low}..{high}, outside [0, {codebook_size}); were they made by another tokenizer? "
            "Encode the audio again with the model's own"
        )
    return codes.long()
