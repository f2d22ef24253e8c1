"""benchmark=tokenizer with the real tokenizer, codecs, recogniser and speaker encoder on three clips."""

import io

import pytest

from moss.config.compose import load_config
from moss.config.evaluation import EvalConfig, Metric
from moss.data.manifest import Utterance, write_manifest
from moss.evaluation.run import evaluate
from moss.evaluation.table import print_summary
from tests.evaluation.fakes import TEXTS, write_voice

pytestmark = pytest.mark.slow


@pytest.fixture
def words(tmp_path):
    """What is typed behind evaluate.py; the clips are made up, since no recording comes with the tests."""
    utterances = []
    for i in range(3):
        path = write_voice(tmp_path / f"clips/{i}.wav", i, seconds=2.0)
        utterances.append(
            Utterance(id=f"u{i}", audio=str(path), text=TEXTS[i], language="en", split="heldout", duration_s=2.0)
        )
    write_manifest(tmp_path / "utterances.jsonl", utterances)
    manifest, output = f"manifest={tmp_path / 'utterances.jsonl'}", f"output={tmp_path / 'out'}"
    return ["benchmark=tokenizer", manifest, output, "codebooks=[1,16]"]


def test_one_table_of_everything_that_is_shipped(words, tmp_path):
    config = load_config(EvalConfig, "evaluate", words)
    summary = evaluate(config)
    labels = [row.label for row in summary.rows]
    assert labels[:3] == ["original audio", "cat_embedded, 1 codebook", "cat_embedded, 16 codebooks"]
    assert labels[3:5] == ["mel_rvq, 1 codebook", "mel_rvq, 16 codebooks"]
    assert [label for label in labels if label.startswith("Opus")] == [
        "Opus 6 kbit/s",
        "Opus 8 kbit/s",
        "Opus 12 kbit/s",
    ]
    assert sum(label.startswith("Codec 2") for label in labels) == 3
    assert labels[-1].startswith("mel + Griffin-Lim")
    assert summary.num_failed == 0
    few, many, bound = (summary.rows[i].scores for i in (3, 4, -1))
    for metric in (Metric.STOI, Metric.PESQ_WB, Metric.SIM):
        assert few[metric].mean < many[metric].mean <= bound[metric].mean
    assert few[Metric.MEL_DISTANCE].mean > many[Metric.MEL_DISTANCE].mean > bound[Metric.MEL_DISTANCE].mean
    stream = io.StringIO()
    print_summary(summary, stream)
    assert "mel_rvq, 16 codebooks (2000 bit/s)" in stream.getvalue()
    assert (tmp_path / "out/curves.png").stat().st_size > 10_000

    changed = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/reconstructions").rglob("*")}
    again = evaluate(config)
    assert again.rows == summary.rows
    assert changed == {path: path.stat().st_mtime_ns for path in (tmp_path / "out/reconstructions").rglob("*")}
