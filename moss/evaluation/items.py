"""One clip to score, and how its audio is read."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moss.config.evaluation import Metric
from moss.data.audio import audio_info, load_audio
from moss.errors import EvaluationError
from moss.evaluation.backends.interface import Wave16k
from moss.evaluation.metrics.signal import SCORING_RATE_HZ

SILENCE_PEAK = 1e-4
"""A clip that never exceeds -80 dBFS says nothing; a recogniser would invent words for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One clip of one system and what its metrics need. A clip that should exist and does not is an item too."""

    system: str
    group: str
    utterance: str
    text: str
    language: str
    metrics: tuple[Metric, ...]
    wav: Path | None
    """The clip to score; None when there is none, and then `failure` says why."""
    failure: str | None = None
    prompt: Path | None = None
    """Clip of the wanted voice (SIM)."""
    prompt_kind: str = ""
    """"reference", "other_clip" or "target"."""
    target: Path | None = None
    """The recording that the clip should equal (PESQ, STOI, distances, RTF)."""
    target_s: float | None = None
    """How long the clip should be, in seconds (duration error)."""
    processing_s: float | None = None
    """Seconds that encoding and decoding took (RTF)."""
    timed_on: str = ""
    """Hardware and threads of `processing_s`."""


def read_wave(path: Path) -> Wave16k:
    """Samples (N,) at 16 kHz, mono by the mean of channels.

    Raises:
        DataError: missing, corrupt or empty file.
        EvaluationError: the clip is silent.
    """
    wave: Wave16k = load_audio(path, SCORING_RATE_HZ).numpy()
    peak = float(np.abs(wave).max(initial=0.0))
    if peak < SILENCE_PEAK:
        raise EvaluationError(f"{path} is silent (peak {peak:.1g}); nothing can be scored")
    return wave


def duration_s(path: Path) -> float:
    """Length of a clip in seconds, at its own sampling rate.

    Raises:
        DataError: missing, corrupt or empty file.
    """
    return audio_info(path).duration_s
