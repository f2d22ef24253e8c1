"""The demonstration: words in, latencies out, the same codes as the offline call."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch

from moss.command import run_command
from moss.errors import GenerationError
from moss.generation.realtime_demo import Timings, feed_words, main, report
from moss.generation.realtime_loop import RealtimePrompt, generate_realtime
from moss.generation.realtime_session import RealtimeSession
from moss.sequence.prompt import Conversation
from tests.generation.realtime_toy import SAMPLED, TEXT, CausalTokenizer, toy_layout, toy_model


def test_words_give_the_codes_and_sound_of_the_offline_call() -> None:
    session = RealtimeSession(toy_model(), toy_layout(), config=SAMPLED, seed=1, tokenizer=CausalTokenizer())
    timings = feed_words(session, TEXT, word_delay_s=0.001)
    rows = toy_layout().conversation(Conversation(reference=None, turns=[]))
    prompt = RealtimePrompt(rows=rows, text_ids=toy_layout().encode(TEXT))
    offline = generate_realtime(toy_model(), [prompt], [1], SAMPLED)[0].segments[0].codes
    assert torch.equal(timings.codes, offline)
    assert timings.audio is not None
    assert torch.equal(timings.audio, CausalTokenizer().decode([offline])[0])
    assert len(timings.decodings_s) == len(offline)
    assert min(timings.decodings_s) > 0
    assert len(timings.latencies_s) == len(offline)
    assert 0 < timings.latencies_s[0] < timings.first_frame_s < timings.total_s
    assert timings.total_s > 0.001 * (len(TEXT.split()) - 1)


def test_report() -> None:
    timings = Timings(codes=torch.zeros(4, 1), latencies_s=[0.04, 0.01, 0.01, 0.02], first_frame_s=0.05, total_s=1.0)
    lines = report(timings, 0.08, "end").splitlines()
    assert lines[0] == "4 frames, 0.3 s of audio, stop reason end"
    assert lines[1] == "first frame after 50.0 ms (computing 40.0 ms)"
    assert lines[2].startswith("per frame p50 15.0 ms, p95 37.0 ms; a frame lasts 80 ms")
    assert lines[3].startswith("real-time factor 0.250")
    assert len(lines) == 4
    timings.decodings_s = [0.02, 0.02, 0.04, 0.08]
    lines = report(timings, 0.08, "end").splitlines()
    assert lines[4] == "decoding a frame to sound p50 30.0 ms, p95 74.0 ms; real-time factor with it 0.750"


def test_without_a_checkpoint_it_says_that_this_is_noise(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--text", "one two three", "--max-frames", "5"])
    out = capsys.readouterr().out
    assert "small random model" in out
    assert "noise" in out
    assert re.search(r"\d frames, 0\.\d s of audio", out)
    assert re.search(r"p50 \d+\.\d ms, p95 \d+\.\d ms", out)
    assert "real-time factor" in out
    assert "decoding" not in out


class LoadedModel:
    """Stands in for what `load_speech_model` returns."""

    def __init__(self, tokenizer: CausalTokenizer | None) -> None:
        self.tokenizer, self.reference = tokenizer, None

    def session(self, *, reference: Path | None, seed: int, max_frames: int) -> RealtimeSession:
        self.reference = reference
        settings = replace(SAMPLED, max_frames=max_frames)
        return RealtimeSession(toy_model(), toy_layout(), config=settings, seed=seed, tokenizer=self.tokenizer)


def test_a_checkpoint_speaks_into_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded, output = LoadedModel(CausalTokenizer()), tmp_path / "a.wav"
    monkeypatch.setattr("moss.generation.loading.load_speech_model", lambda *_, **__: loaded)
    main(["--checkpoint", "x", "--output", str(output), "--reference", "v.wav", "--text", TEXT, "--max-frames", "6"])
    out = capsys.readouterr().out
    assert "noise" not in out
    assert "decoding a frame to sound p50" in out
    frames = int(re.search(r"(\d+) frames", out)[1])
    assert loaded.reference == Path("v.wav")
    assert soundfile.info(output).frames == frames * CausalTokenizer.spec.samples_per_frame
    assert soundfile.info(output).samplerate == CausalTokenizer.spec.sampling_rate_hz
    loaded.tokenizer = None
    assert run_command(main, ["--checkpoint", "x", "--output", str(output)]) == GenerationError.exit_code
    assert "has no audio tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "  "], "--text is empty"),
        (["--output", "a.wav"], "--reference and --output need --checkpoint"),
        (["--reference", "a.wav"], "--reference and --output need --checkpoint"),
    ],
)
def test_bad_options(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, arguments) == GenerationError.exit_code
    assert message in capsys.readouterr().err


def test_help() -> None:
    command = [sys.executable, "-m", "moss.generation.realtime_demo", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    for option in ("--checkpoint", "--text", "--reference", "--word-delay-ms", "--output"):
        assert option in done.stdout
