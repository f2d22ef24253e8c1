"""What scoring does with input that is wrong: exit code, message, and what is on the disk afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from moss.config.compose import run_command
from moss.config.evaluation import EvalConfig, Metric
from moss.evaluation.run import check_complete, evaluate, evaluate_generations
from tests.evaluation.fakes import fake_backends, generation_folder, write_rows
from tests.recordings import REPOSITORY, leftovers

SLOW_START = """
import sys, time
from tests.bad_input.test_evaluation_bad_input import evaluate_with_fakes
sys.exit(evaluate_with_fakes(sys.argv[1:], pause_s=0.3)[0])
"""


def evaluate_with_fakes(words: list[str], pause_s: float = 0.0) -> tuple[int, int]:
    """What evaluate.py does, with backends that cost nothing; exit code, and clips that were recognised."""
    backends = fake_backends()
    hear = backends.recogniser.transcribe

    def transcribe(wave, language):
        time.sleep(pause_s)
        return hear(wave, language)

    backends.recogniser.transcribe = transcribe

    def scored(config: EvalConfig) -> None:
        check_complete(evaluate(config, backends=backends), config)

    return run_command(EvalConfig, "evaluate", scored, words), backends.recogniser.calls


def words_of(folder: Path) -> list[str]:
    return [f"generations={folder / 'generations'}", f"output={folder / 'out'}"]


@dataclass(frozen=True)
class Ending:
    """How a run ended."""

    code: int
    calls: int
    errors: str

    @property
    def complaint(self) -> str:
        """The one line that a user sees beside the log."""
        lines = [line for line in self.errors.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.errors
        assert "Traceback" not in self.errors
        return lines[0]


@pytest.fixture
def run(tmp_path, capsys):
    def start(*words: str) -> Ending:
        code, calls = evaluate_with_fakes([*words_of(tmp_path), *words])
        return Ending(code, calls, capsys.readouterr().err)

    return start


def spoil_missing(path: Path) -> None:
    path.unlink()


def spoil_empty(path: Path) -> None:
    path.write_bytes(b"")


def spoil_no_samples(path: Path) -> None:
    soundfile.write(path, np.zeros(0, np.float32), 16_000)


def spoil_silent(path: Path) -> None:
    soundfile.write(path, np.zeros(16_000, np.float32), 16_000)


def spoil_corrupt(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20] + b"not audio at all")


def spoil_eight_channels(path: Path) -> None:
    soundfile.write(path, np.zeros((1600, 8), np.float32) + 0.1, 16_000)


def spoil_not_finite(path: Path) -> None:
    soundfile.write(path, np.full(1600, np.nan, np.float32), 16_000, subtype="FLOAT")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_missing, "cannot be read: No such file"),
        (spoil_empty, "empty file (0 bytes)"),
        (spoil_no_samples, "zero duration"),
        (spoil_silent, "is silent"),
        (spoil_corrupt, "corrupt or unknown audio"),
        (spoil_eight_channels, "8 channels"),
        (spoil_not_finite, "non-finite samples"),
    ],
    ids=["missing", "empty", "no samples", "silent", "corrupt", "8 channels", "not finite"],
)
def test_bad_generated_wav_counts_as_an_error_and_is_named(tmp_path, spoil, reason):
    backends = fake_backends()
    rows = generation_folder(tmp_path / "generations", backends)
    spoil(tmp_path / "generations" / rows[0]["wav"])
    summary = evaluate_generations(tmp_path / "generations", tmp_path / "out", backends=backends)
    seen = summary.rows[2].scores[Metric.WER]
    assert (seen.mean, seen.n_scored, seen.n_expected) == (0.5, 1, 2)
    records = [json.loads(line) for line in (tmp_path / "out/scores.jsonl").read_text().splitlines()]
    failed = [record for record in records if record["metric"] == "wer" and record["error"] is not None]
    assert [(record["system"], record["utterance"]) for record in failed] == [("generated", "utt0")]
    assert reason in failed[0]["error"]
    assert rows[0]["wav"] in failed[0]["error"]


def test_missing_wav_ends_with_an_exit_code_under_missing_fail(tmp_path, run):
    rows = generation_folder(tmp_path / "generations")
    (tmp_path / "generations" / rows[0]["wav"]).unlink()
    finished = run("missing=fail")
    assert finished.code == 6
    assert "3 scores are missing and missing=fail" in finished.complaint
    assert (tmp_path / "out/scores.parquet").is_file()
    assert run().code == 0


def test_text_that_normalises_to_nothing(tmp_path, run):
    rows = generation_folder(tmp_path / "generations")
    rows[0]["text"] = " ... "
    write_rows(tmp_path / "generations", rows)
    finished = run()
    assert finished.code == 6
    assert "text is empty after normalisation" in finished.complaint
    assert run("allow_invalid=true").code == 0


def test_broken_line_of_generations_jsonl(tmp_path, run):
    generation_folder(tmp_path / "generations")
    path = tmp_path / "generations/generations.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:-10], *lines[2:]]) + "\n")
    finished = run()
    assert finished.code == 3
    assert f"{path}:2: not JSON" in finished.complaint
    assert not (tmp_path / "out").exists()


def test_duplicate_request_ids(tmp_path, run):
    rows = generation_folder(tmp_path / "generations")
    path = write_rows(tmp_path / "generations", [*rows, rows[1]])
    finished = run()
    assert finished.code == 6
    assert f"{path}:5: request id 'utt1' is used twice, first in line 2" in finished.complaint
    assert not (tmp_path / "out").exists()


def test_no_generations(tmp_path, run):
    finished = run()
    assert finished.code == 3
    assert "generations.jsonl: No such file" in finished.complaint


def test_language_nobody_understands(tmp_path, run):
    rows = generation_folder(tmp_path / "generations")
    write_rows(tmp_path / "generations", [rows[0], rows[1] | {"language": "fr"}])
    finished = run()
    assert finished.code == 6
    assert "understands en only" in finished.complaint
    assert run("metrics=[sim,duration_error]").code == 0


def test_output_that_cannot_be_a_folder(tmp_path, run):
    generation_folder(tmp_path / "generations")
    (tmp_path / "out").write_text("a file")
    finished = run()
    assert finished.code == 6
    assert f"{tmp_path / 'out'} cannot be the output folder" in finished.complaint
    assert (tmp_path / "out").read_text() == "a file"


def test_ctrl_c_keeps_the_records_and_a_second_start_goes_on(tmp_path, run):
    generation_folder(tmp_path / "generations", count=5)
    journal = tmp_path / "out/scores.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_START, *words_of(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        # A background job of a shell ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        deadline = time.monotonic() + 200
        while not journal.is_file() or journal.read_bytes().count(b"\n") < 7:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "interrupted: finished work is kept; start the same command again to go on"
    assert "Traceback" not in errors
    kept = [json.loads(line) for line in journal.read_text().splitlines()]
    heard = sum(record["metric"] == "wer" for record in kept)
    assert 2 <= heard < 15
    assert not (tmp_path / "out/scores.parquet").exists()
    finished = run()
    assert (finished.code, finished.calls) == (0, 15 - heard), finished.errors
    assert len(journal.read_text().splitlines()) == 45
    assert leftovers(tmp_path) == []


def test_killed_in_the_middle_of_a_line(tmp_path, run):
    generation_folder(tmp_path / "generations")
    first = run()
    assert first.calls == 12
    journal = tmp_path / "out/scores.jsonl"
    whole = journal.read_bytes()
    # A kill leaves the lines that were written and half of the next.
    journal.write_bytes(whole[: len(whole) // 2])
    records = sum(json.loads(line)["metric"] == "wer" for line in journal.read_bytes().split(b"\n")[:-1])
    second = run()
    assert (second.code, second.calls) == (0, 12 - records)
    assert journal.read_bytes() == whole
