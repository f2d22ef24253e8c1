"""A block of codes that a decode loop made: what every architecture's loop hands over."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class AudioSegment:
    """One block of audio.

    Attributes:
        codes: Shape (frames, codebooks), the frames given by the prompt included (the tokenizer needs them as past).
        num_given: Leading frames that came from the prompt and are cut after decoding.
    """

    codes: Tensor
    num_given: int


def first_frames(segments: Sequence[AudioSegment], max_frames: int) -> list[AudioSegment]:
    """The segments up to so many new frames; given frames do not count."""
    kept, left = [], max_frames
    for segment in segments:
        new = min(left, len(segment.codes) - segment.num_given)
        if new > 0:
            kept.append(AudioSegment(segment.codes[: segment.num_given + new], segment.num_given))
        left -= new
    return kept
