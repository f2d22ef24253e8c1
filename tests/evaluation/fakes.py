"""Backends that cost nothing and are right about the clips they know, and folders of generations to score."""

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moss.data.audio import write_wav
from moss.evaluation.backends.interface import Revision, Wave16k
from moss.evaluation.items import read_wave
from moss.evaluation.score import Backends
from tests.evaluation.signals import RATE_HZ, voice

TEXTS = ["Press one now.", "Please try again later.", "The number is wrong.", "Hello there, my friend.", "Goodbye."]


class FakeRecogniser:
    """Knows the clips it was told; hears "something else" in every other one."""

    languages: frozenset[str] | None = frozenset({"en"})

    def __init__(self, *, workers: int = 1, version: str = "1") -> None:
        self.workers = workers
        self.revision = Revision(name="fake-asr", version=version, settings="none", sha256="a" * 64)
        self.calls = 0
        self._known: dict[str, str] = {}
        self._counting = threading.Lock()

    def learn(self, path: Path, text: str) -> None:
        """Remember what is said in a clip."""
        self._known[_digest(read_wave(path))] = text

    def transcribe(self, wave: Wave16k, language: str) -> str:
        """The text of a known clip."""
        with self._counting:
            self.calls += 1
        return self._known.get(_digest(wave), "something else")


class FakeSpeaker:
    """Embeds a clip as its coarse spectrum."""

    metric_label = "SIM (fake)"

    def __init__(self) -> None:
        self.revision = Revision(name="fake-speaker", version="1", settings="none", sha256="b" * 64)
        self.calls = 0

    def embed(self, wave: Wave16k) -> NDArray[np.float32]:
        """A vector (16,)."""
        self.calls += 1
        spectrum = np.abs(np.fft.rfft(wave, n=32_000))[:4000]
        return spectrum.reshape(16, -1).mean(axis=1).astype(np.float32)


def fake_backends(**recogniser: Any) -> Backends:
    """Both fakes."""
    return Backends(recogniser=FakeRecogniser(**recogniser), speaker=FakeSpeaker())


def write_voice(path: Path, seed: int, *, pitch_hz: float = 120.0, seconds: float = 1.2) -> Path:
    """A clip of a made-up voice."""
    write_wav(path, voice(seconds, pitch_hz=pitch_hz, seed=seed), RATE_HZ)
    return path


def generation_folder(folder: Path, backends: Backends | None = None, *, count: int = 4) -> list[dict[str, Any]]:
    """Write a folder that is complete: targets, reconstructions and generated clips; return its rows.

    The fake recogniser learns every clip; even rows are "seen", odd ones "heldout".
    """
    rows = []
    for i in range(count):
        text = TEXTS[i % len(TEXTS)]
        paths = {
            "target": write_voice(folder / f"targets/{i}.wav", i, seconds=1.2),
            "reconstruction": write_voice(folder / f"reconstructions/{i}.wav", i, pitch_hz=123, seconds=1.2),
            "wav": write_voice(folder / f"wavs/{i}.wav", i, pitch_hz=140, seconds=1.5),
        }
        for path in paths.values():
            if backends is not None:
                assert isinstance(backends.recogniser, FakeRecogniser)
                backends.recogniser.learn(path, text)
        rows.append(
            {
                "request_id": f"utt{i}",
                "text": text,
                "language": "en",
                "wav": f"wavs/{i}.wav",
                "reference": None,
                "target": {"wav": f"targets/{i}.wav", "duration_s": 1.2, "speaker": "allison"},
                "reconstruction": {"wav": f"reconstructions/{i}.wav"},
                "group": "heldout" if i % 2 else "seen",
                "error": None,
            }
        )
    write_rows(folder, rows)
    return rows


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Write generations.jsonl."""
    path = folder / "generations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _digest(wave: Wave16k) -> str:
    return hashlib.sha256(wave.tobytes()).hexdigest()
