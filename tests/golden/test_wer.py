"""Word error rates equal the reference implementation's. MOSS_GOLDEN_DIR chooses another folder of cases."""

import json
import os
from pathlib import Path

import pytest

from moss.errors import EvaluationError
from moss.evaluation.metrics.wer import WordErrors, num_tokens, simplify_chinese, word_errors

FOLDER = Path(os.environ.get("MOSS_GOLDEN_DIR") or Path(__file__).parent)
CASES = [json.loads(line) for line in (FOLDER / "golden_wer.jsonl").read_text(encoding="utf-8").splitlines()]
SCORABLE = [case for case in CASES if case["error"] is None]
INVALID = [case for case in CASES if case["error"] is not None]


def errors_of(case: dict) -> WordErrors:
    return word_errors(case["ref"], case["hyp_asr"], case["lang"])


@pytest.mark.parametrize("case", SCORABLE, ids=lambda case: case["id"])
def test_case(case):
    found = errors_of(case)
    assert abs(found.wer - case["wer"]) <= 1e-12
    assert (found.reference_norm, found.hypothesis_norm) == (case["ref_norm"], case["hyp_norm"])
    assert found.num_errors == case["substitutions"] + case["deletions"] + case["insertions"]
    assert found.num_reference_tokens == case["n_ref_tokens"] == num_tokens(case["ref"], case["lang"])


@pytest.mark.parametrize("case", INVALID, ids=lambda case: case["id"])
def test_empty_reference_is_invalid(case):
    assert num_tokens(case["ref"], case["lang"]) == 0
    with pytest.raises(EvaluationError, match="invalid_ref"):
        errors_of(case)


def test_chinese_hypotheses_are_folded_as_the_reference_folds_them():
    folded = {case["id"]: case["hyp_after_zhconv"] for case in CASES if case["lang"] == "zh"}
    assert {case["id"]: simplify_chinese(case["hyp_asr"]) for case in CASES if case["lang"] == "zh"} == folded
