"""PESQ and STOI values. The committed cases are synthetic; MOSS_GOLDEN_DIR adds those of its golden_pesq_stoi.json."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from scipy import signal

from moss.evaluation.metrics.signal import pesq_nb_16k, pesq_wb, stoi
from tests.evaluation.signals import voice, with_noise

PESQ_TOLERANCE, STOI_TOLERANCE = 1e-3, 1e-4

# Made by the functions below with pesq 0.0.4 and pystoi 0.4.1: PESQ-NB@16k, PESQ-WB, STOI, ESTOI.
SYNTHETIC = {
    "identity": (4.54864, 4.64389, 1.0, 1.0),
    "noise 20 dB": (2.30972, 1.21761, 0.9825, 0.95949),
    "noise 5 dB": (1.37858, 1.02489, 0.91227, 0.79304),
    "delay 20 ms": (4.54864, 4.64389, 0.90448, 0.89214),
    "last 250 ms missing": (4.54864, 4.64389, 1.0, 1.0),
    "half the level": (4.54864, 4.64389, 1.0, 1.0),
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


def scores(clean: np.ndarray, degraded: np.ndarray) -> tuple[float, float, float, float]:
    return (
        pesq_nb_16k(clean, degraded),
        pesq_wb(clean, degraded),
        stoi(clean, degraded),
        stoi(clean, degraded, extended=True),
    )


@pytest.mark.parametrize("name", SYNTHETIC)
def test_synthetic(name):
    found = scores(*synthetic(name))
    assert found[:2] == pytest.approx(SYNTHETIC[name][:2], abs=PESQ_TOLERANCE)
    assert found[2:] == pytest.approx(SYNTHETIC[name][2:], abs=STOI_TOLERANCE)


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


def recorded_cases() -> list[tuple[Path, dict[str, Any]]]:
    """Cases of the chosen golden folder; none where no folder is chosen, since recordings are not committed."""
    folder = os.environ.get("MOSS_GOLDEN_DIR")
    if not folder or not (Path(folder) / "golden_pesq_stoi.json").is_file():
        return []
    cases = json.loads((Path(folder) / "golden_pesq_stoi.json").read_text(encoding="utf-8"))["cases"]
    return [(Path(folder) / case["path"], case) for case in cases]


RECORDED = recorded_cases()


def check_recorded(path: Path, case: dict[str, Any]) -> None:
    clean, rate_hz = soundfile.read(path)
    assert rate_hz == 16_000
    found = scores(clean, DEGRADATIONS[case["degradation"]](clean))
    assert found[:2] == pytest.approx((case["pesq_nb_16k"], case["pesq_wb_16k"]), abs=PESQ_TOLERANCE)
    assert found[2:] == pytest.approx((case["stoi"], case["estoi"]), abs=STOI_TOLERANCE)


if RECORDED:  # pytest reports an empty parametrisation as a skip, and here nothing is skipped

    @pytest.mark.parametrize(("path", "case"), RECORDED, ids=[f"{c['file']}-{c['degradation']}" for _, c in RECORDED])
    def test_recorded(path, case):
        check_recorded(path, case)
