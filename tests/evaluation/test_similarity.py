import numpy as np
import pytest

from moss.errors import EvaluationError
from moss.evaluation.metrics.similarity import cosine


def test_cosine():
    assert cosine(np.array([1.0, 0.0]), np.array([3.0, 0.0])) == 1.0
    assert cosine(np.array([1.0, 0.0]), np.array([0.0, 2.0])) == 0.0
    assert cosine(np.array([1.0, 1.0]), np.array([-1.0, -1.0])) == pytest.approx(-1.0)


@pytest.mark.parametrize("second", [np.zeros(2), np.array([np.nan, 1.0])])
def test_vectors_without_direction(second):
    with pytest.raises(EvaluationError, match="zero or not finite"):
        cosine(np.ones(2), second)


def test_other_widths():
    with pytest.raises(EvaluationError, match=r"shapes \(2,\) and \(3,\)"):
        cosine(np.ones(2), np.ones(3))
