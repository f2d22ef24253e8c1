"""The delay pattern: codebook k runs k positions behind codebook 0.

Source: MOSS-TTS moss_tts_delay/processing_moss_tts.py (apply and undo) @58b20a0; arXiv 2306.05284 §2.2 (the idea).
"""

import torch
from torch import Tensor

from moss.errors import DataError


def apply_delay(codes: Tensor, pad_code: int) -> Tensor:
    """Shift codebook k down by k positions and fill the gaps with the pad code.

    Args:
        codes: Integer codes, shape (frames, codebooks).
        pad_code: Value of every entry that holds no code.

    Returns:
        Delayed codes, shape (frames + codebooks - 1, codebooks); position p holds frame p - k of codebook k.
    """
    num_frames, num_codebooks = codes.shape
    delayed = codes.new_full((num_frames + num_codebooks - 1, num_codebooks), pad_code)
    for k in range(num_codebooks):
        delayed[k : k + num_frames, k] = codes[:, k]
    return delayed


def undo_delay(delayed: Tensor) -> Tensor:
    """Shift codebook k up by k positions and drop the incomplete tail.

    Args:
        delayed: Delayed codes, shape (positions, codebooks).

    Returns:
        Codes, shape (positions - codebooks + 1, codebooks).

    Raises:
        DataError: Fewer positions than codebooks, so that no frame is complete.
    """
    num_positions, num_codebooks = delayed.shape
    num_frames = num_positions - num_codebooks + 1
    if num_frames < 1:
        raise DataError(
            f"delayed codes have {num_positions} positions for {num_codebooks} codebooks, so no frame is complete; "
            f"at least {num_codebooks} positions are needed"
        )
    return torch.stack([delayed[k : k + num_frames, k] for k in range(num_codebooks)], dim=1)


def delay_mask(num_frames: int, num_codebooks: int) -> Tensor:
    """Where a delayed grid holds codes: bool, shape (frames + codebooks - 1, codebooks)."""
    positions = torch.arange(num_frames + num_codebooks - 1).unsqueeze(1)
    shift = torch.arange(num_codebooks).unsqueeze(0)
    return (positions >= shift) & (positions < num_frames + shift)
