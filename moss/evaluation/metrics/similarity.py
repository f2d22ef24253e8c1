"""Similarity of two embeddings."""

import numpy as np
from numpy.typing import NDArray

from moss.errors import EvaluationError


def cosine(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Cosine of the angle between two embeddings, in [-1, 1].

    Args:
        first: Embedding (width,).
        second: Embedding (width,).

    Raises:
        EvaluationError: the widths differ, or an embedding is zero or not finite.
    """
    if first.shape != second.shape or first.ndim != 1:
        raise EvaluationError(
            f"embeddings of shapes {first.shape} and {second.shape} cannot be compared; "
            "embed both clips with the same backend"
        )
    left, right = first.astype(np.float64), second.astype(np.float64)
    scale = float(np.linalg.norm(left) * np.linalg.norm(right))
    if not np.isfinite(scale) or scale == 0.0:
        raise EvaluationError("an embedding is zero or not finite, so it has no direction; check the clip it came from")
    return float(np.clip(left @ right / scale, -1.0, 1.0))
