"""Clips of every kind become codes of the model, or an error that says what to do."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from moss.data.audio import normalise_loudness
from moss.errors import DataError, GenerationError
from moss.generation.references import ClipReader
from moss.generation.segments import AudioSegment
from moss.generation.speech import Speech
from moss.tokenizer.interface import AudioTokenizer
from tests.generation.toy import CausalTokenizer, small_cat

TOKENIZER = CausalTokenizer()


def reader(**changes: object) -> ClipReader:
    values: dict[str, object] = {"tokenizer": TOKENIZER, "num_codebooks": 4, "codebook_size": 16, "max_frames": 500}
    values |= {"normalise": False, "find": lambda _: None}
    return ClipReader(**(values | changes))  # type: ignore[arg-type]


def tone(seconds: float, rate_hz: int = 250, level: float = 0.5) -> Tensor:
    return torch.full((round(seconds * rate_hz),), level)


def speech(codes: Tensor, tokenizer: AudioTokenizer | None = TOKENIZER, error: str | None = None) -> Speech:
    return Speech(
        id="voice",
        text="the words",
        segments=[AudioSegment(codes, 0)],
        stop_reason="end",
        seed=0,
        num_codebooks=codes.shape[1],
        tokenizer=tokenizer,
        error=error,
    )


def test_a_wav_a_waveform_and_its_codes_are_the_same_reference(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1.0).numpy(), 250)
    from_path = reader().codes(tmp_path / "a.wav")
    assert from_path.shape == (13, 4)
    assert torch.equal(reader().codes(str(tmp_path / "a.wav")), from_path)
    assert torch.equal(reader().codes((tone(1.0), 250)), from_path)
    assert torch.equal(reader().codes(from_path), from_path)


def test_stereo_and_other_rates_are_converted_and_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    both = np.stack([np.full(2000, 0.8), np.zeros(2000)], axis=1)
    soundfile.write(tmp_path / "stereo.wav", both, 1000)
    codes = reader().codes(tmp_path / "stereo.wav")
    # Two seconds at the mean of both channels, 0.4 of 15 levels.
    assert codes.shape == (25, 4)
    assert (codes[3:-3] == 6).all()
    assert "stereo.wav: 1000 Hz, 2 channels, converted to 250 Hz mono" in caplog.text
    assert torch.equal(reader().codes((torch.from_numpy(both.T), 1000)), codes)


def test_loudness_is_moved_only_where_the_model_wants_it() -> None:
    loud = tone(1.0)
    plain, softer = reader().codes((loud, 250)), reader(normalise=True).codes((loud, 250))
    assert torch.equal(plain, TOKENIZER.encode([loud], 4)[0])
    assert torch.equal(softer, TOKENIZER.encode([normalise_loudness(loud)], 4)[0])
    assert not torch.equal(plain, softer)


def test_an_earlier_generation_by_itself_and_by_id() -> None:
    codes = torch.randint(0, 16, (9, 4))
    made = speech(codes)
    assert torch.equal(reader().codes(made), codes)
    finder = reader(find={"voice": made}.get)
    assert torch.equal(finder.codes("voice"), codes)
    assert finder.speech("voice") is made
    assert finder.speech("other") is None


def test_what_another_tokenizer_spoke_is_encoded_again() -> None:
    class Other(CausalTokenizer):
        fingerprint = "other"

    codes = torch.full((9, 4), 8)
    heard = reader().codes(speech(codes, Other()))
    # A level of 8/32 with its echo.
    assert torch.equal(heard, TOKENIZER.encode([Other().decode([codes])[0]], 4)[0])
    assert not torch.equal(heard, codes)
    # So is a generation with too few codebooks.
    few = reader().codes(speech(codes[:, :2]))
    assert few.shape == (9, 4)


def test_codes_of_another_tokenizer_without_their_sound_are_refused() -> None:
    codes = torch.full((9, 4), 8)
    theirs, none = replace(speech(codes, None), tokenizer_fingerprint="theirs"), reader(tokenizer=None)
    message = "'voice': has codes of tokenizer theirs, the model speaks those of {}; load both models with `tokenizer="
    with pytest.raises(GenerationError, match=message.format("ours")):
        reader(tokenizer=None, fingerprint="ours").codes(theirs)
    with pytest.raises(GenerationError, match=message.format("causal")):
        reader().codes(theirs)
    # The same one, or nobody knows.
    assert torch.equal(reader(tokenizer=None, fingerprint="theirs").codes(theirs), codes)
    assert torch.equal(none.codes(theirs), codes)


def test_more_codebooks_than_the_model_has(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    codes = torch.randint(0, 16, (5, 8))
    assert torch.equal(reader().codes(codes), codes[:, :4])
    assert "the first 4 of 8 codebooks are used" in caplog.text


def test_stereo_clips_are_joined_with_mono_ones() -> None:
    tokenizer = small_cat(audio_channels=2)
    codes = torch.randint(0, 16, (6, 4), generator=torch.Generator().manual_seed(2))
    voice = speech(codes, tokenizer)
    heard = tokenizer.decode([codes])[0].mean(0)
    joined = reader(tokenizer=tokenizer).joined_codes([voice, (tone(0.5, 400), 400)])
    assert torch.equal(joined, tokenizer.encode([torch.cat([heard, tone(0.5, 400)])], 4)[0])


def test_clips_are_joined_before_they_are_encoded() -> None:
    # 1.5 and 2.5 frames are four frames together, not five.
    clips = [(tone(0.12), 250), (tone(0.2, level=0.9), 250)]
    joined = reader().joined_codes(clips)
    assert torch.equal(joined, TOKENIZER.encode([torch.cat([clip for clip, _ in clips])], 4)[0])
    assert len(joined) == 4
    # Codes are joined as they are; beside a waveform they are heard.
    codes = torch.full((3, 4), 5)
    assert torch.equal(reader().joined_codes([codes, codes]), torch.cat([codes, codes]))
    mixed = reader().joined_codes([codes, clips[1]])
    assert torch.equal(mixed, TOKENIZER.encode([torch.cat([TOKENIZER.decode([codes])[0], clips[1][0]])], 4)[0])


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nowhere.wav", "'nowhere.wav': no such file, and none of the latest .* has that id; give the rec"),
        ((torch.zeros(500), 250), r"is silent \(peak 0 of full scale, at least 0\.001 is needed\); give a clip"),
        (
            (torch.full((500,), float("nan")), 250),
            "samples that are not finite .*; decode the recording again, or cut these samples out",
        ),
        ((torch.ones(6, 500), 250), "6 channels, at most 2 are mixed down; pass the one with speech"),
        ((torch.ones(250 * 301), 250), r"is 301\.0 s \(3763 frames\) long, at most 300\.0 s can be used; cut out 5 to"),
        ((torch.ones(500, dtype=torch.int16), 250), "expected a float waveform of shape"),
        ((torch.ones(500),), r"expected \(waveform, rate in Hz\)"),
        (torch.ones(500), r"a tensor of torch\.float32 with shape \(500,\) is neither codes"),
        (torch.ones(5, 3, dtype=torch.long), "3 codebooks, the model needs 4; expected codes of shape"),
        (torch.ones(0, 4, dtype=torch.long), "has no frame"),
        (torch.full((5, 4), 16), r"codes range over 16\.\.16, outside \[0, 16\); were they made by another tokenizer"),
        (torch.full((5, 4), -1), r"codes range over -1\.\.-1"),
    ],
)
def test_clips_that_cannot_be_used(reference: object, message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        reader(max_frames=100_000).codes(reference)  # type: ignore[arg-type]


def test_the_limit_is_the_models_where_that_is_less() -> None:
    with pytest.raises(GenerationError, match=r"is 10\.0 s \(125 frames\) long, at most 4\.0 s can be used"):
        reader(max_frames=50).codes((tone(10.0), 250))
    with pytest.raises(GenerationError, match="is 60 frames long, the model has room for 50 frames"):
        reader(max_frames=50, tokenizer=None).codes(torch.ones(60, 4, dtype=torch.long))
    # What is carried on may be longer than what shows a voice.
    assert len(reader(max_frames=100_000).codes((tone(301.0), 250), voice=False)) == 3763


def test_a_file_that_is_no_recording(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("not audio")
    with pytest.raises(DataError, match=r"a\.wav: corrupt or unknown audio"):
        reader().codes(tmp_path / "a.wav")


def test_without_a_tokenizer_codes_only() -> None:
    codes = torch.ones(5, 4, dtype=torch.long)
    assert torch.equal(reader(tokenizer=None).codes(codes), codes)
    assert torch.equal(reader(tokenizer=None).codes(speech(codes, None)), codes)
    with pytest.raises(GenerationError, match="needs an audio tokenizer .* give `tokenizer=` to moss.load, or codes"):
        reader(tokenizer=None).codes((tone(1.0), 250))


def test_a_failed_generation_is_no_reference() -> None:
    with pytest.raises(GenerationError, match="reference 'voice': that generation failed: too long"):
        reader().codes(speech(torch.ones(0, 4, dtype=torch.long), error="too long"))
