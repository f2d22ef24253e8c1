"""The tokenizer card: which clips, which tables, and failures at the floor. The recogniser is a fake."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from moss.data.command import run_command
from moss.data.manifest import Utterance, write_manifest
from moss.data.split import is_heldout
from moss.errors import ConfigError, DataError
from tests.evaluation.fakes import fake_backends
from tests.recordings import REPOSITORY, write_tone

HELDOUT = [text for text in (f"sentence {n}" for n in range(60)) if is_heldout(text)][:3]
TRAIN = next(text for text in (f"sentence {n}" for n in range(60)) if not is_heldout(text))


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Three held-out clips (one too short for PESQ), one of another language, and one that was fitted on."""
    rows = []
    for name, text, language, seconds in (
        ("a", HELDOUT[0], "en", 1.0),
        ("b", HELDOUT[1], "en", 2.0),
        ("short", HELDOUT[2], "en", 0.2),
        ("foreign", HELDOUT[0], "fr", 1.0),
        ("fitted", TRAIN, "en", 1.0),
    ):
        audio = write_tone(tmp_path / f"{name}.wav", seconds)
        rows.append(Utterance(id=name, audio=str(audio), text=text, language=language, duration_s=seconds))
    path = tmp_path / "utterances.jsonl"
    write_manifest(path, rows)
    return path


def run(*arguments: str | Path) -> int:
    script: dict[str, Any] = runpy.run_path(str(REPOSITORY / "benchmarks" / "tokenizer_card.py"))
    main = script["main"]
    main.__globals__["embedded_backends"] = lambda asr: fake_backends()
    return run_command(main, [str(argument) for argument in arguments])


def test_one_table_for_each_shortest_duration(manifest: Path, tmp_path: Path) -> None:
    output = tmp_path / "card.md"
    arguments = ("--manifest", manifest, "--codebooks", "all,1", "--min-durations-s", "0.1,1.5", "--output", output)
    assert run(*arguments, "--work-dir", tmp_path / "work") == 0
    text = output.read_text(encoding="utf-8")
    long, short = text.split("\n## ")[1:]
    assert long.startswith("1 clips of at least 1.5 s (2 s)")
    assert short.startswith("3 clips of at least 0.1 s (3 s)")
    for table in (long, short):
        assert [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")] == [
            "codebooks", "---", "original", "1", "16",
        ]  # fmt: skip
    assert "python benchmarks/tokenizer_card.py --manifest" in text
    assert "| 16 |" in long
    assert long.count("0 of 4 |") == 2
    # Both PESQ of the clip of 0.2 s cannot be computed, nor its STOI.
    assert short.count("3 of 12 |") == 2


@pytest.mark.parametrize("words", ["0", "17", "x", "1,,2"])
def test_a_number_of_codebooks_that_is_none(
    manifest: Path, tmp_path: Path, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run("--manifest", manifest, "--codebooks", words, "--output", tmp_path / "card.md")
    assert code == ConfigError.exit_code
    assert "--codebooks: expected numbers from 1 to 16 or 'all'" in capsys.readouterr().err


def test_no_heldout_clip(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run("--manifest", manifest, "--language", "de", "--output", tmp_path / "card.md")
    assert code == DataError.exit_code
    assert "holds no held-out clip of language 'de'" in capsys.readouterr().err
