"""From requests to a folder of wavs, codes and rows; finished work is never made twice."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from moss.command import run_command
from moss.config.generation import GenerationConfig, SamplerConfig
from moss.data.files import read_jsonl
from moss.errors import GenerationError
from moss.generation.__main__ import main
from moss.generation.engine import Engine
from moss.generation.loading import load_speech_model
from moss.generation.requests import Request, Target
from moss.generation.speech_model import SpeechModel
from tests.generation.toy import TEXTS, build_humming, codes_for, write_checkpoint

GREEDY = SamplerConfig(temperature=0.0)
CONFIG = GenerationConfig(text=GREEDY, audio=GREEDY, max_frames=40, batch_size=2)
REQUESTS = [Request(id=f"r{i}", text=text, language="en") for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints" / "step-00000001")


@pytest.fixture(autouse=True)
def _humming(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moss.generation.loading.build_tokenizer", build_humming)


def engine(checkpoint: Path, config: GenerationConfig = CONFIG) -> Engine:
    return Engine(load_speech_model(checkpoint), config)


def test_files_and_rows(checkpoint: Path, tmp_path: Path) -> None:
    rows = engine(checkpoint).run(REQUESTS, tmp_path)
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


def test_resume_makes_only_what_is_missing(checkpoint: Path, tmp_path: Path) -> None:
    first = engine(checkpoint)
    rows = first.run(REQUESTS, tmp_path)
    assert first.tokenizer.decoded == 2  # type: ignore[attr-defined]
    again = engine(checkpoint)
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
    engine(checkpoint, replace(CONFIG, seed=1)).run(REQUESTS, tmp_path)
    assert {row["sampler"]["seed"] for row in read_jsonl(tmp_path / "generations.jsonl")} == {1}


def test_a_failing_request_is_a_row_and_the_rest_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    bad = [
        Request(id="lost", text="one two", reference=str(tmp_path / "nowhere.wav")),
        Request(id="long", text="onetwo" * 90),
    ]
    rows = engine(checkpoint).run([bad[0], *REQUESTS, bad[1]], tmp_path / "out")
    assert [row["request_id"] for row in rows] == ["lost", "r0", "r1", "long"]
    assert [row["wav"] is None for row in rows] == [True, False, False, True]
    assert "nowhere.wav" in rows[0]["error"]
    assert "positions and 40 frames may follow, but the model holds 200; shorten the text" in rows[3]["error"]
    assert len(list((tmp_path / "out" / "wavs").iterdir())) == 2


def test_budget_is_a_stop_reason_and_no_frame_an_error(checkpoint: Path, tmp_path: Path) -> None:
    (row,) = engine(checkpoint, replace(CONFIG, max_frames=3)).run(REQUESTS[:1], tmp_path / "short")
    assert row["stop_reason"] == "max_frames"
    assert row["frames"] == 3
    assert torch.equal(
        torch.from_numpy(np.load(tmp_path / "short" / row["codes"]).astype(np.int64)), codes_for(TEXTS[0], 4)[:3]
    )
    # The longest turn that the limit allows ends by itself.
    frames = len(codes_for(TEXTS[0], 4))
    (row,) = engine(checkpoint, replace(CONFIG, max_frames=frames)).run(REQUESTS[:1], tmp_path / "whole")
    assert (row["stop_reason"], row["frames"]) == ("end", frames)
    mute = engine(checkpoint)
    special = mute.model.model.config.special_tokens  # type: ignore[attr-defined]
    with torch.no_grad():
        # What spoke for audio speaks against it.
        mute.model.model.head_weight(0)[special.audio_start] *= -1
    (row,) = mute.run(REQUESTS[:1], tmp_path / "none")
    assert row["error"] == "the model made no complete frame of audio"
    assert row["wav"] is None


def test_reconstructions(checkpoint: Path, tmp_path: Path) -> None:
    wav = tmp_path / "human.wav"
    soundfile.write(wav, np.sin(np.arange(3000) * 0.1) * 0.5, 16_000)
    request = replace(REQUESTS[0], target=Target(wav=str(wav), duration_s=3000 / 16_000))
    speaker = engine(checkpoint)
    (plain,) = speaker.run([request], tmp_path / "out")
    assert "reconstruction" not in plain
    (row,) = speaker.run([request], tmp_path / "out", reconstruct=True)
    made = tmp_path / "out" / row["reconstruction"]["wav"]
    assert soundfile.info(made).frames == 3 * 1280
    assert row["target"] == {"wav": str(wav), "duration_s": 3000 / 16_000, "speaker": ""}


def words(checkpoint: Path, output: Path, *more: str) -> list[str]:
    base = ["--checkpoint", str(checkpoint), "--output", str(output), "--max-frames", "40", "--temperature", "0"]
    return [*base, "--text-temperature", "0", *more]


def test_command_line(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, words(checkpoint, tmp_path, "--text", TEXTS[0], "--language", "en")) == 0
    frames = len(codes_for(TEXTS[0], 4))
    shown = capsys.readouterr()
    assert shown.out.endswith(f"1 of 1 made, {frames * 0.08:.1f} s of audio: {tmp_path}\n")
    # What was chosen is said once.
    assert shown.err.count("attention") == 1
    assert "delay on cpu, float32, attention sdpa, offload none" in shown.err
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


def test_options_of_the_command_line_reach_the_prompt(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []
    spoken = SpeechModel.speak

    def listening(self: SpeechModel, requests: list[Request], config: GenerationConfig):  # type: ignore[no-untyped-def]
        asked.extend(requests)
        return spoken(self, requests, config)

    monkeypatch.setattr(SpeechModel, "speak", listening)
    wav = str(tmp_path / "clip.wav")
    soundfile.write(wav, np.sin(np.arange(3000) * 0.1) * 0.5, 16_000)
    line = ["--text", TEXTS[0], "--reference", wav, "--prefix", wav, "--prefix-text", "one", "--instruction", "old"]
    run_command(main, words(checkpoint, tmp_path / "a", *line, "--tokens", "7", "--max-chars", "90"))
    (request,) = asked
    assert (request.reference, request.references, request.prefix, request.prompt_text) == (wav, None, wav, "one")
    assert (request.instruction, request.tokens, request.max_chars) == ("old", 7, 90)
    two = words(checkpoint, tmp_path / "b", "--text", TEXTS[0], "--reference", wav, "--reference", "")
    run_command(main, two)
    assert (asked[1].reference, asked[1].references) == (None, [wav, None])
    run_command(main, words(checkpoint, tmp_path / "c", "--ambient-sound", "rain"))
    assert (asked[2].text, asked[2].ambient_sound) == (None, "rain")


def test_samplers_are_the_models_unless_the_command_line_says_so(checkpoint: Path, tmp_path: Path) -> None:
    base = ["--checkpoint", str(checkpoint), "--text", TEXTS[0], "--max-frames", "20"]
    run_command(main, [*base, "--output", str(tmp_path / "a")])
    run_command(main, [*base, "--output", str(tmp_path / "b"), "--top-k", "3", "--seed", "5"])
    (plain,), (changed,) = (read_jsonl(tmp_path / name / "generations.jsonl") for name in "ab")
    audio = {"temperature": 1.7, "top_k": 25, "top_p": 0.8, "repetition_penalty": 1.0, "penalty_window": 0}
    assert plain["sampler"]["audio"] == audio
    assert changed["sampler"]["audio"] == audio | {"top_k": 3}
    assert (plain["sampler"]["seed"], changed["sampler"]["seed"]) == (0, 5)


def test_a_long_text_has_its_parts_in_the_row(checkpoint: Path, tmp_path: Path) -> None:
    request = Request(id="long", text=f"{TEXTS[0]}. {TEXTS[1].capitalize()}.", max_chars=20)
    (row,) = engine(checkpoint).run([request], tmp_path)
    assert [part["text"] for part in row["parts"]] == ["one two.", "Press the star key."]
    assert row["frames"] == sum(part["num_frames"] for part in row["parts"])


def test_what_cannot_be_written(checkpoint: Path, tmp_path: Path) -> None:
    model = load_speech_model(checkpoint)
    silent = SpeechModel(model.model, model.layout, model.card, folder=model.folder)
    with pytest.raises(GenerationError, match="writing wavs needs an audio tokenizer; load the model with"):
        Engine(silent)
    tensor = Request(id="t", text="one two", reference=torch.ones(3, 4, dtype=torch.long))
    with pytest.raises(GenerationError, match="references of requests that are written to a folder must be paths"):
        engine(checkpoint).run([tensor], tmp_path)
