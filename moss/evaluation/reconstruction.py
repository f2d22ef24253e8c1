"""Clips of every system on disk: made once, timed one at a time, and never made again while nothing has changed.

The hardware is part of that: a time is only as good as what it was taken on.

Every system hears the recording resampled once to its own rate; what comes out is kept as 16-bit PCM at that rate, as
long as the original. The one reference of all systems is the recording at 16 kHz as 16-bit PCM, so that a band that a
system does not carry counts against it, and systems of different rates can stand in one table.
Source: MOSS-Audio-Tokenizer-Eval reconstruct.py @b8e23bf, which differs in one thing: its reference has the rate of
the system before it is brought to 16 kHz.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from moss.data.audio import load_audio, write_wav
from moss.data.files import append_jsonl, read_journal, remove_leftovers, sha256_file
from moss.data.manifest import Utterance
from moss.data.progress import track
from moss.errors import EvaluationError, MossError
from moss.evaluation.metrics.signal import SCORING_RATE_HZ
from moss.evaluation.provenance import processor
from moss.evaluation.systems import System, Variant

logger = logging.getLogger(__name__)

TIMINGS = "timings.jsonl"
_WARM_UP_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """The recording of an utterance as every system is compared with it."""

    utterance: Utterance
    name: str
    """File name of everything made of it; changes with the recording."""
    reference: Path
    failure: str | None = None
    """Why it cannot be read; every system then has this failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """What a system made of one utterance in one setting, or why it made nothing."""

    wav: Path | None = None
    processing_s: float | None = None
    timed_on: str = ""
    """Hardware and threads of `processing_s`."""
    failure: str | None = None


def write_originals(utterances: Sequence[Utterance], folder: Path) -> list[Original]:
    """Write the references that are not there yet; a recording that cannot be read becomes a failure.

    Args:
        utterances: What is scored.
        folder: Folder of all reconstructions.

    Raises:
        DataError: the disk is full.
    """
    originals = []
    for utterance in utterances:
        source = Path(utterance.audio)
        try:
            name = f"{utterance.id}-{_sha256(source)[:8]}.wav"
            reference = folder / "original-16k" / name
            wave = None
            if not reference.is_file():
                wave = load_audio(source, SCORING_RATE_HZ, max_channels=utterance.max_channels)
        except MossError as error:
            logger.warning("%s cannot be read: %s", utterance.id, error)
            originals.append(Original(utterance=utterance, name="", reference=source, failure=str(error)))
            continue
        if wave is not None:
            write_wav(reference, wave, SCORING_RATE_HZ)
        originals.append(Original(utterance=utterance, name=name, reference=reference))
    return originals


def reconstruct(system: System, originals: Sequence[Original], folder: Path) -> dict[tuple[str, str], Reconstruction]:
    """Make the clips of a system that are not on disk, one at a time, and keep how long each took.

    A clip that the system cannot take is a failure, not an exception.

    Args:
        system: Tokenizer or codec.
        originals: What it is given.
        folder: Folder of all reconstructions.

    Returns:
        (name of the variant's system, utterance) -> what was made.

    Raises:
        DataError: the disk is full.
    """
    root = folder / system.folder
    remove_leftovers(root, recursive=True)
    place = timing_place(system)
    seconds = _known_seconds(root / TIMINGS, place)
    wanted = {original.utterance.id: _missing(system, original, root, seconds) for original in originals}
    if any(wanted.values()):
        _warm_up(system)
    made: dict[tuple[str, str], Reconstruction] = {}
    for original in track(originals, f"reconstructing: {system.family}", len(originals)):
        failures: dict[str, str] = {}
        if wanted[original.utterance.id]:
            failures = _make(system, original, wanted[original.utterance.id], root, seconds)
        for variant in system.variants:
            path = f"{variant.folder}/{original.name}"
            there = original.failure is None and path in seconds and (root / path).is_file()
            made[variant.system, original.utterance.id] = (
                Reconstruction(wav=root / path, processing_s=seconds[path], timed_on=place)
                if there
                else Reconstruction(failure=original.failure or failures.get(variant.system, "no clip was made"))
            )
    return made


def timing_place(system: System) -> str:
    """What a system computes on now, as it stands beside its times."""
    threads = f"{torch.get_num_threads()} CPU threads"
    return f"{processor() if system.device == 'cpu' else system.device}, {threads}"


def _make(
    system: System, original: Original, variants: Sequence[Variant], root: Path, seconds: dict[str, float]
) -> dict[str, str]:
    """Reconstruct one clip in some settings; those that fail, with the reason."""
    place = timing_place(system)
    missing = {variant.system: variant for variant in variants}
    failures: dict[str, str] = {}
    while missing:
        rebuilt = []
        try:
            utterance = original.utterance
            wave = load_audio(utterance.audio, system.sampling_rate_hz, max_channels=utterance.max_channels)
            for variant, result in system.rebuild(wave, list(missing.values())):
                rebuilt.append((variant, result))
                del missing[variant.system]
        except MossError as error:
            # The setting that failed is the first that did not come; those behind it have another chance.
            failed = next(iter(missing))
            del missing[failed]
            failures[failed] = str(error)
        # Beyond what may fail: a full disk is no fault of the system's.
        for variant, result in rebuilt:
            if not bool(torch.isfinite(result.wave).all()):
                failures[variant.system] = f"{variant.system}: made samples that are not finite"
                continue
            path = f"{variant.folder}/{original.name}"
            write_wav(root / path, result.wave, system.sampling_rate_hz)
            line = {"wav": path, "processing_s": result.processing_s, "timed_on": place}
            append_jsonl(root / TIMINGS, line, durable=False)
            seconds[path] = result.processing_s
    for name, reason in failures.items():
        logger.warning("%s: %s cannot be reconstructed: %s", name, original.utterance.id, reason)
    return failures


def _missing(system: System, original: Original, root: Path, seconds: Mapping[str, float]) -> list[Variant]:
    if original.failure is not None:
        return []
    paths = {variant.folder: f"{variant.folder}/{original.name}" for variant in system.variants}
    return [
        variant
        for variant in system.variants
        if paths[variant.folder] not in seconds or not (root / paths[variant.folder]).is_file()
    ]


def _known_seconds(journal: Path, place: str) -> dict[str, float]:
    """Clip -> seconds it took here, from earlier runs; lines of other hardware or another version are passed over."""
    rows = read_journal(journal)
    return {
        row["wav"]: float(row["processing_s"])
        for row in rows
        if isinstance(row.get("wav"), str)
        and isinstance(row.get("processing_s"), int | float)
        and row.get("timed_on") == place
    }


def _warm_up(system: System) -> None:
    """Code a second of quiet noise: what is loaded and compiled at first use is no part of any clip's time."""
    noise = np.random.default_rng(0).standard_normal(round(_WARM_UP_S * system.sampling_rate_hz)).astype(np.float32)
    try:
        for _ in system.rebuild(torch.from_numpy(0.01 * noise), system.variants[-1:]):
            pass
    except MossError as error:
        logger.warning("%s cannot code a second of noise: %s", system.family, error)


def _sha256(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}; was it moved, or never made?") from error
