"""From the rows of an assistant's turn back to codes.

Source: MOSS-TTS moss_tts_delay/processing_moss_tts.py:683-748 @58b20a0.
Differs: unless `compatibility=reference`, a continuation keeps all of its new frames (the published code counts the
start token as a frame and drops one), and any number of audio blocks is allowed (the published code raises for two).
"""

import torch
from torch import Tensor

from moss.config.generation import Compatibility
from moss.generation.segments import AudioSegment
from moss.sequence.delay import undo_delay


def audio_segments(
    rows: Tensor, num_given_rows: int, pad_code: int, compatibility: Compatibility
) -> list[AudioSegment]:
    """Undo the delay and cut the turn into its audio blocks.

    Args:
        rows: The turn, shape (positions, channels), up to its end.
        num_given_rows: Rows that stood in the prompt; the first of them is the start token.
        pad_code: A frame of nothing but pads separates blocks.
        compatibility: Which rule says how many leading frames were given.

    Returns:
        Complete blocks in order; empty when no frame is complete.
    """
    delayed = rows[:, 1:]
    if len(delayed) < delayed.shape[1]:
        return []
    codes = undo_delay(delayed)
    filled = (codes != pad_code).any(dim=1).nonzero().squeeze(1)
    if len(filled) == 0:
        return []
    breaks = (filled[1:] != filled[:-1] + 1).nonzero().squeeze(1) + 1
    blocks = [codes[part] for part in torch.tensor_split(filled, breaks.cpu())]
    if compatibility is Compatibility.none:
        blocks = [block[(block != pad_code).all(dim=1)] for block in blocks]
    start_token_rows = 0 if compatibility is Compatibility.reference else 1
    given = max(0, num_given_rows - start_token_rows)
    segments = [AudioSegment(block, min(given if index == 0 else 0, len(block))) for index, block in enumerate(blocks)]
    return [segment for segment in segments if len(segment.codes) > segment.num_given]
