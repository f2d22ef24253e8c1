"""Next-position targets: which positions carry loss, and in which channels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from moss.errors import DataError
from moss.spec import IGNORE_LABEL


def next_position_labels(rows: Tensor, num_prompt_positions: int, pad_code: int) -> tuple[Tensor, Tensor]:
    """Split a whole conversation into inputs and the targets of the assistant's turn.

    Args:
        rows: The conversation, shape (positions, channels).
        num_prompt_positions: Positions of the same conversation in generation mode; the first target is the
            position after them.
        pad_code: Codes with this value are never a target.

    Returns:
        Inputs and labels, both (positions - 1, channels), already aligned: label p is what input p predicts.

    Raises:
        DataError: Nothing follows the prompt.
    Source: MOSS-TTS moss_tts_delay/finetuning/dataset.py:125-189 @58b20a0.
    """
    if not 0 < num_prompt_positions < len(rows):
        raise DataError(f"the prompt has {num_prompt_positions} of {len(rows)} positions, so there is no target")
    inputs, labels = rows[:-1], rows[1:].clone()
    labels[: num_prompt_positions - 1] = IGNORE_LABEL
    codes = labels[:, 1:]
    codes[codes == pad_code] = IGNORE_LABEL
    return inputs, labels


def target_counts(
    frames: Sequence[int] | Tensor,
    num_codebooks: int,
    *,
    text_targets: int | None = None,
    first_targets: int = 0,
    kept: Sequence[int] | None = None,
) -> Tensor:
    """Targets per channel of examples, without building them.

    Args:
        frames: Frames of each answer.
        num_codebooks: Codebooks of the model.
        text_targets: Targets of channel 0 beside one a frame, for each answer. The default is Delay's
            codebooks + 3: start, delay slots, end, end of turn, newline.
        first_targets: Targets of codebook 0 beside one a frame, for each answer.
        kept: How many codebooks of each answer carry loss; None for all.

    Returns:
        Counts summed over the answers, shape (channels,).

    Raises:
        DataError: `kept` is of another length, or outside 1..num_codebooks.
    """
    lengths = [int(length) for length in frames]
    depths = [num_codebooks] * len(lengths) if kept is None else list(kept)
    if len(depths) != len(lengths) or any(not 1 <= depth <= num_codebooks for depth in depths):
        raise DataError(
            f"kept={depths} for {len(lengths)} answers; give one number of 1..{num_codebooks} codebooks an answer"
        )
    extra = num_codebooks + 3 if text_targets is None else text_targets
    counts = torch.zeros(1 + num_codebooks, dtype=torch.long)
    counts[0] = sum(lengths) + len(lengths) * extra
    counts[1] = len(lengths) * first_targets
    for length, depth in zip(lengths, depths, strict=True):
        counts[1 : 1 + depth] += length
    return counts
