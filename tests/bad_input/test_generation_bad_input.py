"""What users get wrong in a request: each is an error that says what, where and what to do; or works after all."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import moss
from moss.errors import DataError, GenerationError
from moss.generation.speech_model import SpeechModel
from tests.generation.toy import talking, write_checkpoint

TEXT = "Hello there."
DIALOGUE = "[S1] Hello. [S2] Good day."


@pytest.fixture(scope="module")
def tts() -> SpeechModel:
    return talking("delay")


@pytest.fixture(scope="module")
def ttsd() -> SpeechModel:
    return talking("delay", "ttsd")


def recording(path: Path, rate_hz: int = 250, seconds: float = 2.0, channels: int = 1, level: float = 0.4) -> Path:
    wave = np.sin(np.arange(round(seconds * rate_hz)) * 0.3) * level
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate_hz)
    return path


def test_a_prompt_that_overruns_the_context(tts: SpeechModel, tmp_path: Path) -> None:
    prefix = torch.randint(0, 16, (790, 4))
    with pytest.raises(GenerationError) as caught:
        tts.generate(TEXT, prefix=prefix, prompt_text="So.")
    message = r"^the prompt has \d{3} positions and 12 frames may follow, but the model holds 800; shorten the text"
    assert caught.match(message)
    # In a batch the others are made.
    whole, failed = tts.batch([{"text": TEXT}, {"text": TEXT, "prefix": prefix, "prompt_text": "So."}])
    assert whole.error is None
    assert failed.error == str(caught.value)


def test_a_text_that_overruns_the_context_is_spoken_in_parts(tts: SpeechModel) -> None:
    speech = tts.generate("Here is one sentence more. " * 120)
    assert len(speech.parts) > 1


@pytest.mark.parametrize("rate_hz", [100, 8_000, 44_100])
def test_a_reference_in_another_rate(
    tts: SpeechModel, tmp_path: Path, rate_hz: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clip = recording(tmp_path / "clip.wav", rate_hz)
    assert len(tts.generate(TEXT, reference=clip).codes) > 0
    assert f"clip.wav: {rate_hz} Hz, 1 channels, converted to 250 Hz mono" in caplog.text


def test_a_stereo_reference(tts: SpeechModel, tmp_path: Path) -> None:
    mono, stereo = recording(tmp_path / "mono.wav"), recording(tmp_path / "stereo.wav", channels=2)
    expected = tts.generate(TEXT, reference=mono)
    assert torch.equal(tts.generate(TEXT, reference=stereo).codes, expected.codes)


def test_a_silent_reference(tts: SpeechModel, tmp_path: Path) -> None:
    clip = recording(tmp_path / "silence.wav", level=0.0)
    with pytest.raises(GenerationError, match=r"silence\.wav: is silent .*; give a clip with the voice"):
        tts.generate(TEXT, reference=clip)


def test_a_reference_of_twenty_minutes(tmp_path: Path) -> None:
    clip = recording(tmp_path / "lecture.wav", seconds=1200)
    for member, text in (("tts", TEXT), ("ttsd", DIALOGUE)):
        model = talking("delay", member, max_positions=32_768)
        references: dict[str, Any] = {"reference": clip} if member == "tts" else {"references": [clip, None]}
        message = r"lecture\.wav: is 1200\.0 s \(15000 frames\) long, at most 300\.0 s can be used; cut out 5 to 30 s"
        with pytest.raises(GenerationError, match=message):
            model.generate(text, **references)


def test_an_unknown_language(tts: SpeechModel) -> None:
    with pytest.raises(DataError, match="Klingon.*English"):
        tts.generate(TEXT, language="Klingon")


@pytest.mark.parametrize(
    ("text", "references", "message"),
    [
        (DIALOGUE, 1, r"1 references for 2 speakers: tag \[S2\] has no reference; give one for each speaker, null for"),
        (DIALOGUE, 3, "3 references for 2 speakers: some have nothing to say"),
        ("[S2] Hello. [S1] Good day.", 2, r"the speakers first appear as \[S2\] \[S1\]; number them \[S1\], \[S2\]"),
        ("[S1] Hello. [S3] Good day.", 2, r"first appear as \[S1\] \[S3\]; number them .* without holes"),
        ("Hello. [S1] Good day.", 1, "stand before the first speaker tag"),
        ("Hello.", 1, r"has no speaker tag; write \[S1\] before the first speaker's words"),
    ],
)
def test_speaker_tags(ttsd: SpeechModel, text: str, references: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ttsd.generate(text, references=[torch.ones(3, 4, dtype=torch.long)] * references)


@pytest.mark.parametrize("code", [16, 1024, -1])
@pytest.mark.parametrize("field", ["reference", "prefix"])
def test_codes_outside_the_codebook(tts: SpeechModel, field: str, code: int) -> None:
    codes = torch.randint(0, 16, (5, 4))
    codes[2, 1] = code
    message = r"codes range over .*, outside \[0, 16\); were they made by another tokenizer"
    with pytest.raises(GenerationError, match=message):
        tts.generate(TEXT, prompt_text="So." if field == "prefix" else None, **{field: codes})


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_does_not_exist(tmp_path: Path, device: str) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(GenerationError, match=f"device '{device}' cannot be used: "):
        moss.load(checkpoint, device=device)


def test_two_requests_with_one_id(tts: SpeechModel) -> None:
    with pytest.raises(GenerationError, match="request id 'a' is given twice; ids name the output files"):
        tts.batch([{"id": "a", "text": "One."}, {"id": "b", "text": "Two."}, {"id": "a", "text": "Three."}])
