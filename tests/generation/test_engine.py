"""From requests to a folder of wavs, codes and rows; finished work is never made twice."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from moss.config.generation import GenerationConfig, SamplerConfig
from moss.data.command import run_command
from moss.data.files import read_jsonl
from moss.errors import CheckpointError, GenerationError
from moss.generation.__main__ import main
from moss.generation.engine import Engine, newest_checkpoint, normalise_loudness
from moss.generation.requests import Request, Target
from tests.generation.toy import FINGERPRINT, TEXTS, HummingTokenizer, build_humming, codes_for, write_checkpoint

GREEDY = SamplerConfig(temperature=0.0)
CONFIG = GenerationConfig(text=GREEDY, audio=GREEDY, max_frames=40, batch_size=2)
REQUESTS = [Request(id=f"r{i}", text=text, language="en") for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints" / "step-00000001")


@pytest.fixture(autouse=True)
def _humming(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moss.generation.engine.build_tokenizer", build_humming)


def test_files_and_rows(checkpoint: Path, tmp_path: Path) -> None:
    rows = Engine(checkpoint, CONFIG).run(REQUESTS, tmp_path)
    assert rows == read_jsonl(tmp_path / "generations.jsonl")
    for row, request in zip(rows, REQUESTS, strict=True):
        assert (row["request_id"], row["text"], row["stop_reason"], row["error"]) == (
            request.id,
            request.text,
            "end",
            None,
        )
        codes = np.load(tmp_path / row["codes"])
        assert codes.dtype == np.uint16
        assert torch.equal(torch.from_numpy(codes.astype(np.int64)), codes_for(request.text, 4))
        info = soundfile.info(tmp_path / row["wav"])
        assert (info.samplerate, info.frames) == (16_000, row["frames"] * 1280)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes", "generations.jsonl", "wavs"]


def test_run_folder_means_its_newest_checkpoint(checkpoint: Path) -> None:
    run = checkpoint.parents[1]
    assert newest_checkpoint(run) == newest_checkpoint(checkpoint) == checkpoint
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a run folder with checkpoints"):
        newest_checkpoint(checkpoint.parent)


def test_resume_makes_only_what_is_missing(checkpoint: Path, tmp_path: Path) -> None:
    first = Engine(checkpoint, CONFIG)
    rows = first.run(REQUESTS, tmp_path)
    assert first.tokenizer.decoded == 2  # type: ignore[attr-defined]
    again = Engine(checkpoint, CONFIG)
    assert again.run(REQUESTS, tmp_path) == rows
    assert again.tokenizer.decoded == 0  # type: ignore[attr-defined]
    # A journal that a kill cut short, and a wav that was lost.
    lines = (tmp_path / "generations.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "generations.jsonl").write_text(lines[0] + lines[1][:40])
    assert [row["request_id"] for row in again.run(REQUESTS, tmp_path)] == ["r0", "r1"]
    assert again.tokenizer.decoded == 1  # type: ignore[attr-defined]
    (tmp_path / rows[0]["wav"]).unlink()
    again.run(REQUESTS, tmp_path)
    assert again.tokenizer.decoded == 2  # type: ignore[attr-defined]
    # Other settings or another text: made anew.
    Engine(checkpoint, replace(CONFIG, seed=1)).run(REQUESTS, tmp_path)
    assert {row["sampler"]["seed"] for row in read_jsonl(tmp_path / "generations.jsonl")} == {1}


def test_a_failing_request_is_a_row_and_the_rest_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    bad = [
        Request(id="lost", text="one two", reference=str(tmp_path / "nowhere.wav")),
        Request(id="long", text="one two " * 90),
    ]
    rows = Engine(checkpoint, CONFIG).run([bad[0], *REQUESTS, bad[1]], tmp_path / "out")
    assert [row["request_id"] for row in rows] == ["lost", "r0", "r1", "long"]
    assert [row["wav"] is None for row in rows] == [True, False, False, True]
    assert "nowhere.wav" in rows[0]["error"]
    assert "positions and 40 frames may follow, but the model holds 200; shorten the text" in rows[3]["error"]
    assert len(list((tmp_path / "out" / "wavs").iterdir())) == 2


def test_budget_is_a_stop_reason_and_no_frame_an_error(checkpoint: Path, tmp_path: Path) -> None:
    (row,) = Engine(checkpoint, replace(CONFIG, max_frames=3)).run(REQUESTS[:1], tmp_path / "short")
    assert row["stop_reason"] == "max_frames"
    assert row["frames"] == 3
    assert torch.equal(
        torch.from_numpy(np.load(tmp_path / "short" / row["codes"]).astype(np.int64)), codes_for(TEXTS[0], 4)[:3]
    )
    # The longest turn that the limit allows ends by itself.
    frames = len(codes_for(TEXTS[0], 4))
    (row,) = Engine(checkpoint, replace(CONFIG, max_frames=frames)).run(REQUESTS[:1], tmp_path / "whole")
    assert (row["stop_reason"], row["frames"]) == ("end", frames)
    engine = Engine(checkpoint, CONFIG)
    special = engine.model.config.special_tokens
    with torch.no_grad():
        # What spoke for audio speaks against it.
        engine.model.lm_heads[0].weight[special.audio_start] *= -1
    (row,) = engine.run(REQUESTS[:1], tmp_path / "none")
    assert row["error"] == "the model made no complete frame of audio"
    assert row["wav"] is None


def test_reconstructions(checkpoint: Path, tmp_path: Path) -> None:
    wav = tmp_path / "human.wav"
    soundfile.write(wav, np.sin(np.arange(3000) * 0.1) * 0.5, 16_000)
    request = replace(REQUESTS[0], target=Target(wav=str(wav), duration_s=3000 / 16_000))
    engine = Engine(checkpoint, CONFIG)
    (plain,) = engine.run([request], tmp_path / "out")
    assert "reconstruction" not in plain
    (row,) = engine.run([request], tmp_path / "out", reconstruct=True)
    made = tmp_path / "out" / row["reconstruction"]["wav"]
    assert soundfile.info(made).frames == 3 * 1280
    assert row["target"] == {"wav": str(wav), "duration_s": 3000 / 16_000, "speaker": ""}


def test_another_tokenizer_is_refused_by_name(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = "moss.generation.engine.build_tokenizer"
    monkeypatch.setattr(other, lambda _: HummingTokenizer("fedcba9876543210"))
    message = f"trained on codes of tokenizer {FINGERPRINT}, humming is fedcba9876543210 here; encode and train again"
    with pytest.raises(CheckpointError, match=message):
        Engine(checkpoint, CONFIG)


def test_another_text_tokenizer_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    content = json.loads((checkpoint / "moss.json").read_text())
    fingerprint = content["text_tokenizer"]["fingerprint"]
    content["text_tokenizer"]["fingerprint"] = "another"
    (tmp_path / "moss.json").write_text(json.dumps(content))
    (tmp_path / "model.safetensors").symlink_to(checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"text tokenizer another, this program has {fingerprint}"):
        Engine(tmp_path, CONFIG)


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there(checkpoint: Path, device: str) -> None:
    with pytest.raises(GenerationError, match=f"device '{device}' cannot be used: "):
        Engine(checkpoint, CONFIG, device)


def test_loudness_moves_by_at_most_3_db() -> None:
    wave = torch.ones(100) * 0.11
    assert torch.allclose(normalise_loudness(wave), torch.ones(100) * 0.1)
    assert torch.allclose(normalise_loudness(wave * 1e-3), wave * 1e-3 * 10**0.15)
    assert torch.equal(normalise_loudness(torch.zeros(5)), torch.zeros(5))


def words(checkpoint: Path, output: Path, *more: str) -> list[str]:
    base = ["--checkpoint", str(checkpoint), "--output", str(output), "--max-frames", "40", "--temperature", "0"]
    return [*base, "--text-temperature", "0", *more]


def test_command_line(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, words(checkpoint, tmp_path, "--text", TEXTS[0], "--language", "en")) == 0
    frames = len(codes_for(TEXTS[0], 4))
    assert capsys.readouterr().out.endswith(f"1 of 1 made, {frames * 0.08:.1f} s of audio: {tmp_path}\n")
    assert (tmp_path / "wavs" / "utterance.wav").is_file()


def test_command_line_where_nothing_could_be_made(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "requests.jsonl").write_text('{"text": "a", "reference": "nowhere.wav"}\n')
    requests = ["--requests", str(tmp_path / "requests.jsonl")]
    assert run_command(main, words(checkpoint, tmp_path / "out", *requests)) == 5
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-1].startswith("error: no request could be made; the first: ")
    assert "r000001: " in shown.err
    assert run_command(main, words(checkpoint, tmp_path / "out", "--text", " ")) == 5
    assert capsys.readouterr().err == "error: --text is empty\n"
