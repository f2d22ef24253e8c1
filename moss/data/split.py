"""The held-out split: a pure function of the text, so that no text is ever in both parts, whoever computes it."""

import hashlib
import re

from moss.errors import DataError

TRAIN = "train"
HELDOUT = "heldout"
REFERENCE = "reference"
"""Clips that lend their voice to examples and are no example themselves."""

_NOT_WORD = re.compile(r"[^\w']+")
_BUCKETS = 10_000


def normalised_text(text: str) -> str:
    """Lower case, everything but letters, digits and apostrophes as one blank, ends trimmed."""
    return _NOT_WORD.sub(" ", text.lower()).strip()


def is_heldout(text: str, heldout_frac: float = 0.2) -> bool:
    """Whether a text belongs to the held-out part.

    Args:
        text: The transcript, as written.
        heldout_frac: Expected fraction of texts held out, 0 to 1. A larger fraction holds out a superset.

    Raises:
        DataError: The fraction is outside 0..1.
    """
    if not 0.0 <= heldout_frac <= 1.0:
        raise DataError(f"heldout_frac={heldout_frac} is outside 0..1")
    digest = hashlib.sha256(normalised_text(text).encode()).hexdigest()
    return int(digest[:8], 16) % _BUCKETS < heldout_frac * _BUCKETS


def split_of(text: str, heldout_frac: float = 0.2) -> str:
    """The name of the part a text belongs to: "train" or "heldout"."""
    return HELDOUT if is_heldout(text, heldout_frac) else TRAIN
