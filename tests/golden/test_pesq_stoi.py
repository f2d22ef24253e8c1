"""PESQ and STOI values. The committed cases are synthetic; MOSS_GOLDEN_DIR adds those of its golden_pesq_stoi.json.

That file describes recordings beside it, eight degradations that are made here, and calls that must fail.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from scipy import signal

from moss.errors import EvaluationError
from moss.evaluation.metrics.signal import pesq_nb_8k, pesq_nb_16k, pesq_wb, stoi
from tests.evaluation.signals import voice, with_noise

METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "pesq_nb_16k": pesq_nb_16k,
    "pesq_nb_8k_resample_poly": pesq_nb_8k,
    "pesq_wb_16k": pesq_wb,
    "stoi": stoi,
    "estoi": functools.partial(stoi, extended=True),
}
"""By the names of the file."""

# With the packages that made the values, and with others.
SAME, OTHER = {"pesq": 1e-4, "stoi": 1e-4}, {"pesq": 2e-2, "stoi": 1e-3}
COMMITTED = {"pesq": 1e-3, "stoi": 1e-4}

# Made by the functions below with pesq 0.0.4 and pystoi 0.4.1, in the order of METRICS.
SYNTHETIC = {
    "identity": (4.54864, 4.54864, 4.64389, 1.0, 1.0),
    "noise 20 dB": (2.30972, 2.41151, 1.21761, 0.9825, 0.95949),
    "noise 5 dB": (1.37858, 1.46445, 1.02489, 0.91227, 0.79304),
    "delay 20 ms": (4.54864, 4.54864, 4.64389, 0.90448, 0.89214),
    "last 250 ms missing": (4.54864, 4.54864, 4.64389, 1.0, 1.0),
    "half the level": (4.54864, 4.54864, 4.64389, 1.0, 1.0),
}


def delayed(wave: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(320, wave.dtype), wave])[: wave.size]


def synthetic(name: str) -> tuple[np.ndarray, np.ndarray]:
    clean = voice()
    degraded = {
        "identity": clean,
        "noise 20 dB": with_noise(clean, 20),
        "noise 5 dB": with_noise(clean, 5),
        "delay 20 ms": delayed(clean),
        "last 250 ms missing": clean[:-4000],
        "half the level": clean * 0.5,
    }
    return clean, degraded[name]


def scores(clean: np.ndarray, degraded: np.ndarray) -> dict[str, float]:
    return {name: metric(clean, degraded) for name, metric in METRICS.items()}


def check_scores(found: dict[str, float], expected: dict[str, float], tolerance: dict[str, float]) -> None:
    for name, value in found.items():
        allowed = tolerance["pesq" if name.startswith("pesq") else "stoi"]
        assert value == pytest.approx(expected[name], abs=allowed), name


@pytest.mark.parametrize("name", SYNTHETIC)
def test_synthetic(name):
    check_scores(scores(*synthetic(name)), dict(zip(METRICS, SYNTHETIC[name], strict=True)), COMMITTED)


def mu_law(wave: np.ndarray) -> np.ndarray:
    compressed = np.sign(wave) * np.log1p(255 * np.abs(wave)) / np.log(256)
    levels = np.floor((compressed + 1) / 2 * 255 + 0.5) / 255 * 2 - 1
    return np.sign(levels) * (256 ** np.abs(levels) - 1) / 255


def low_passed(wave: np.ndarray) -> np.ndarray:
    return np.convolve(wave, signal.firwin(101, 3400, fs=16_000), "same")


def noisy(wave: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(wave.size)
    return wave + noise * np.sqrt(np.mean(wave**2) / (np.mean(noise**2) * 10))


def through_pcm16(wave: np.ndarray) -> np.ndarray:
    return np.clip(np.round(wave * 32767), -32768, 32767) / 32767


DEGRADATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda wave: wave,
    "mulaw8": mu_law,
    "lowpass3400": low_passed,
    "awgn10dB": noisy,
    "delay20ms": delayed,
    "gain0.5": lambda wave: wave * 0.5,
    "trunc250ms": lambda wave: wave[:-4000],
    "pcm16_roundtrip": through_pcm16,
}


def golden_file() -> dict[str, Any]:
    """The chosen file; empty where no folder is chosen.

    Raises:
        FileNotFoundError: The chosen folder, or the file in it, is not there.
    """
    folder = os.environ.get("MOSS_GOLDEN_DIR")
    if not folder:
        return {}
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} does not exist; set MOSS_GOLDEN_DIR to a folder of golden cases")
    path = Path(folder) / "golden_pesq_stoi.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; put it there, or set MOSS_GOLDEN_DIR to the folder that has it"
        )
    return json.loads(path.read_text(encoding="utf-8")) | {"folder": folder}


GOLDEN = golden_file()
CASES = GOLDEN.get("cases", [])


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_a_chosen_folder_without_the_file_is_an_error(tmp_path, monkeypatch, name):
    monkeypatch.setenv("MOSS_GOLDEN_DIR", str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="nowhere does not exist" if name else "stoi.json does not exist; put"):
        golden_file()


def golden_tolerance() -> dict[str, float]:
    made_with = {name: GOLDEN["meta"][name] for name in ("numpy", "scipy", "soundfile", "pesq", "pystoi")}
    return SAME if all(version(name) == wanted for name, wanted in made_with.items()) else OTHER


@functools.cache
def recording(path: str, sha256: str) -> np.ndarray:
    file = Path(GOLDEN["folder"]) / path
    assert hashlib.sha256(file.read_bytes()).hexdigest() == sha256, f"{file} is not the recording of the golden file"
    samples, rate_hz = soundfile.read(file)
    assert rate_hz == 16_000
    return samples


@functools.cache
def recorded_scores(index: int) -> dict[str, float]:
    """Scores of a case whose degraded clip is the one of the golden file."""
    case = CASES[index]
    clean = recording(case["path"], case["file_sha256"])
    degraded = DEGRADATIONS[case["degradation"]](clean)
    assert degraded.size == case["n_samples"]
    if golden_tolerance() is SAME:  # other releases may round a filter's last bit elsewhere
        assert hashlib.sha256(degraded.astype(np.float32).tobytes()).hexdigest() == case["deg_f32_sha256"]
    return scores(clean, degraded)


def failing_pair(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Reference and degraded clip of an error case."""
    clean = recording(CASES[0]["path"], CASES[0]["file_sha256"])
    if name == "short_0.2s":
        return clean[:3200], clean[:3200]
    return {"silent_deg": (clean, 0 * clean), "silent_ref": (0 * clean, clean)}[name]


def check_error(case: str, what: str | dict[str, Any]) -> None:
    """What the packages raise, and the constants that STOI answers instead, are errors here."""
    name, _, metric = case.partition("/")
    pair = failing_pair(name)
    reasons = {"silent_deg": "degraded clip is silent", "silent_ref": "reference clip is silent"}
    short = "less than 30 frames" if metric == "stoi" else "Buffer needs to be at least 1/4 of a second long"
    assert isinstance(what, dict) == (metric == "stoi")
    function = {"pesq_nb": pesq_nb_16k, "pesq_wb": pesq_wb, "stoi": stoi}[metric]
    with pytest.raises(EvaluationError, match=reasons.get(name, short)):
        function(*pair)


if GOLDEN:  # pytest reports an empty parametrisation as a skip, and here nothing is skipped

    @pytest.mark.parametrize(
        "index", range(len(CASES)), ids=[f"{case['file']}-{case['degradation']}" for case in CASES]
    )
    def test_recorded(index):
        check_scores(recorded_scores(index), CASES[index], golden_tolerance())

    @pytest.mark.parametrize("degradation", sorted(GOLDEN["mean_by_degradation"]))
    def test_means(degradation):
        found = [recorded_scores(i) for i, case in enumerate(CASES) if case["degradation"] == degradation]
        means = {name: float(np.mean([values[name] for values in found])) for name in METRICS}
        check_scores(means, GOLDEN["mean_by_degradation"][degradation], golden_tolerance())

    @pytest.mark.parametrize("name", sorted(GOLDEN["error_cases"]))
    def test_error_cases(name):
        check_error(name, GOLDEN["error_cases"][name])
