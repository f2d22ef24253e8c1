import dataclasses
import io
import json
import re

import pytest

from moss.config.evaluation import BenchmarkName, EvalConfig, Metric, MissingPolicy
from moss.config.schema import build, check
from moss.data.files import sha256_file
from moss.errors import ConfigError, EvaluationError
from moss.evaluation.run import check_complete, evaluate, evaluate_generations
from moss.evaluation.summary import read_summary
from moss.evaluation.table import coverage, print_summary
from tests.evaluation.fakes import fake_backends, generation_folder, write_rows


@pytest.fixture
def folder(tmp_path):
    backends = fake_backends()
    rows = generation_folder(tmp_path / "generations", backends)
    return tmp_path, backends, rows


def run(folder, **options):
    path, backends, _ = folder
    return evaluate_generations(path / "generations", path / "out", backends=backends, **options)


def test_four_rows_with_scores_intervals_and_counts(folder):
    summary = run(folder)
    assert [row.label for row in summary.rows] == [
        "ground truth",
        "tokenizer reconstruction",
        "generated (seen text)",
        "generated (held-out text)",
    ]
    assert [score.n_expected for row in summary.rows for score in row.scores.values()] == [4] * 6 + [2] * 6
    assert all(row.scores[Metric.WER].mean == 0.0 for row in summary.rows)
    assert summary.rows[0].scores[Metric.DURATION_ERROR].mean == pytest.approx(0.0, abs=1e-9)
    assert summary.rows[2].scores[Metric.DURATION_ERROR].mean == pytest.approx(0.25, abs=1e-6)
    similarity = summary.rows[2].scores[Metric.SIM]
    assert 0.5 < similarity.low < similarity.mean < similarity.high < 1.0
    assert summary.num_failed == summary.num_invalid == 0
    assert "4 with another clip of the same speaker" in " ".join(summary.notes)


def test_all_files_are_written_and_read_back(folder):
    summary = run(folder)
    out = folder[0] / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "report.html",
        "scores.jsonl",
        "scores.parquet",
        "summary.json",
    ]
    assert read_summary(out / "summary.json") == summary
    plain = json.loads((out / "summary.json").read_text())
    assert plain["format_version"] == 1
    assert plain["protocol"] == "embedded-v1"
    assert plain["backends"]["wer"].startswith("fake-asr 1")
    assert plain["provenance"]["packages"]["jiwer"].startswith("4.")


def test_second_run_computes_nothing_and_gives_the_same(folder):
    first = run(folder)
    path, backends, _ = folder
    calls, content = backends.recogniser.calls, sha256_file(path / "out/scores.parquet")
    second = run(folder)
    assert backends.recogniser.calls == calls == 12
    assert second.rows == first.rows
    assert sha256_file(path / "out/scores.parquet") == content


def test_failed_clips_count_and_are_shown(folder):
    path, _, rows = folder
    rows[0] |= {"wav": None, "error": "no end within 200 frames"}
    write_rows(path / "generations", rows)
    summary = run(folder)
    seen = summary.rows[2].scores
    assert (seen[Metric.WER].mean, seen[Metric.WER].mean_scored) == (0.5, 0.0)
    assert (seen[Metric.WER].n_scored, seen[Metric.WER].n_expected) == (1, 2)
    assert summary.num_failed == 3
    assert "generated, utt0, WER: no end within 200 frames" in summary.notes


def test_missing_fail_is_an_error_after_everything_was_written(folder):
    path, _, rows = folder
    (path / "generations" / rows[1]["wav"]).unlink()
    with pytest.raises(
        EvaluationError, match=r"3 scores are missing and missing=fail.*scores\.parquet.*count_as_error"
    ):
        run(folder, missing=MissingPolicy.FAIL)
    assert read_summary(path / "out/summary.json").missing is MissingPolicy.FAIL
    assert (path / "out/report.html").is_file()


def test_text_without_words_is_an_error_unless_allowed(folder):
    path, backends, rows = folder
    rows[1]["text"] = "..."
    write_rows(path / "generations", rows)
    with pytest.raises(
        EvaluationError, match="3 WER scores are excluded because their text is empty.*allow_invalid=true"
    ):
        run(folder)
    config = EvalConfig(output=path / "out", generations=path / "generations", allow_invalid=True)
    summary = evaluate(config, backends=backends)
    check_complete(summary, config)
    assert (summary.rows[3].scores[Metric.WER].n_expected, summary.rows[3].scores[Metric.WER].n_invalid) == (1, 1)


def test_table(folder):
    path, _, rows = folder
    (path / "generations" / rows[1]["wav"]).unlink()
    stream = io.StringIO()
    print_summary(run(folder), stream)
    printed = stream.getvalue()
    assert re.search(r"ground truth +│ +0\.0 % │ +0\.\d{3} │ +0\.0 % │ +4 / 4 │", printed)
    assert re.search(r"\[0\.0, 0\.0\] │ \[0\.\d{3}, 0\.\d{3}\] │", printed)
    assert "SIM (fake)" in printed
    assert "1 / 2" in printed
    assert "- 3 scores are missing:" in printed
    assert coverage([]) == "n/a"


class Terminal(io.StringIO):
    """Says that it is a terminal."""

    def isatty(self):
        return True


def test_terminal_that_is_too_narrow_gets_the_means(folder, monkeypatch):
    summary = run(folder)
    labels = {metric: metric.value for metric in Metric}
    wide = dataclasses.replace(summary, labels=labels)
    monkeypatch.setenv("COLUMNS", "120")
    narrow, piped = Terminal(), io.StringIO()
    print_summary(wide, narrow)
    print_summary(wide, piped)
    assert "[0.0," not in narrow.getvalue()
    assert "[0.0, 0.0]" in piped.getvalue()


def test_training_curves_must_be_there_before_anything_is_scored(folder):
    path, backends, _ = folder
    with pytest.raises(EvaluationError, match=r"metrics\.csv cannot be read.*training run's folder"):
        run(folder, training_run=path)
    assert backends.recogniser.calls == 0


def test_summary_of_another_version(tmp_path):
    path = tmp_path / "summary.json"
    with pytest.raises(EvaluationError, match=r"cannot be read.*run evaluate\.py first"):
        read_summary(path)
    path.write_text('{"format_version": 99}')
    with pytest.raises(EvaluationError, match="format version 99, expected 1; evaluate again"):
        read_summary(path)


def test_configuration_says_all_that_is_wrong():
    assert check(EvalConfig, {"output": "o"}) == ["generations: benchmark=generations needs it, but it is not set"]
    values = {"output": "o", "benchmark": "tokenizer"}
    assert check(EvalConfig, values) == []
    wrong = {"codebooks": [0], "max_utterances": 0, "min_duration_s": -1.0, "metrics": ["duration_error"]}
    problems = check(EvalConfig, values | wrong | {"data_dir": "d", "tokenizers": [], "baselines": []})
    assert [problem.split(":")[0] for problem in problems] == [
        "dataset",
        "tokenizers",
        "codebooks",
        "max_utterances",
        "min_duration_s",
        "metrics",
    ]
    problems = check(EvalConfig, values | {"opus_bits_per_s": [], "codec2_modes": []})
    assert [problem.split(":")[0] for problem in problems] == ["opus_bits_per_s", "codec2_modes"]
    assert check(EvalConfig, values | {"opus_bits_per_s": [], "baselines": ["codec2"]}) == []
    problems = check(EvalConfig, values | {"dataset": "librispeech", "manifest": "m"})
    assert [problem.split(":")[0] for problem in problems] == ["data_dir", "manifest"]
    wrong = {"asr": {"beam_size": 0, "workers": 0}, "bootstrap": {"resamples": 3, "confidence_frac": 1.0}}
    problems = check(EvalConfig, {"output": "o", "generations": "g", "report": {"audio_utterances": -1}} | wrong)
    assert [problem.split(":")[0] for problem in problems] == [
        "asr.beam_size",
        "asr.workers",
        "bootstrap.resamples",
        "bootstrap.confidence_frac",
        "report.audio_utterances",
    ]
    with pytest.raises(ConfigError, match="benchmark: expected one of generations, tokenizer.*did you mean"):
        build(EvalConfig, {"output": "o", "benchmark": "generation"})


def test_configuration_files_compose():
    from moss.config.compose import load_config

    words = ["generations=g", "output=o", "report.audio_utterances=3", "metrics=[wer]"]
    config = load_config(EvalConfig, "evaluate", words)
    assert (config.benchmark, config.metrics) == (BenchmarkName.GENERATIONS, [Metric.WER])
    words = ["benchmark=tokenizer", "tokenizer=mel_rvq", "manifest=m.jsonl", "output=o", "codebooks=[1,2]"]
    config = load_config(EvalConfig, "evaluate", words)
    assert (config.benchmark, config.tokenizer.kind, config.codebooks) == (BenchmarkName.TOKENIZER, "mel_rvq", [1, 2])
    bare = load_config(EvalConfig, "evaluate", ["benchmark=tokenizer"])
    assert (bare.tokenizers, bare.manifest, bare.tokenizer) == (["cat_embedded", "mel_rvq"], None, None)
    assert [baseline.value for baseline in bare.baselines] == ["opus", "codec2", "mel_griffin_lim"]
    words = ["benchmark=tokenizer", "dataset=aishell", "data_dir=d", "tokenizers=[mel_rvq,cat_xs]", "baselines=[opus]"]
    config = load_config(EvalConfig, "evaluate", words)
    assert (config.dataset.value, config.tokenizers, len(config.baselines)) == ("aishell", ["mel_rvq", "cat_xs"], 1)
