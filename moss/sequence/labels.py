"""Next-position targets: which positions carry loss, and in which channels."""

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


def target_counts(num_frames: Tensor, num_codebooks: int) -> Tensor:
    """Targets per channel of delayed examples, without building them.

    Args:
        num_frames: Frames of each example, shape (examples,).
        num_codebooks: Codebooks of the model.

    Returns:
        Counts summed over the examples, shape (channels,): text has frames + codebooks + 3 targets an example
        (start, slots, end, end of turn, newline), every codebook one per frame.
    """
    frames = int(num_frames.sum())
    counts = torch.full((1 + num_codebooks,), frames, dtype=torch.long)
    counts[0] = frames + len(num_frames) * (num_codebooks + 3)
    return counts
