"""Look at each recording once: does it decode, how long is it, is there sound in it.

Results are remembered in a JSON Lines file keyed by path, size and time of change, so a run that was killed goes on
where it stopped, and a second run decodes what was bad only.
"""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moss.data.audio import NO_SAMPLES, NON_FINITE, mix_channels, open_blocks
from moss.data.files import append_jsonl, read_journal, sha256_file
from moss.errors import DataError

SILENCE_PEAK = 1e-3
"""A recording whose largest absolute sample is below this (-60 dBFS) holds no speech."""
RATES_HZ = (8_000, 192_000)
"""Sampling rates that recordings of speech have, from telephones to studios."""
FULL_SCALE = 32_767 / 32_768
"""The largest value of 16 bits: a sample there, or beyond, was cut off."""
CLIPPED_FRAC = 1e-3
"""From this share of cut-off samples on, a recording counts as clipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What was found; `problem` is empty for a usable recording."""

    path: str
    size_bytes: int
    changed_ns: int
    sampling_rate_hz: int = 0
    channels: int = 0
    num_samples: int = 0
    peak: float = 0.0
    clipped_frac: float = 0.0
    """Share of samples, over all channels, at or beyond full scale."""
    sha256: str = ""
    problem: str = ""

    @property
    def duration_s(self) -> float:
        """Length in seconds; 0 where the file could not be decoded."""
        return self.num_samples / self.sampling_rate_hz if self.sampling_rate_hz else 0.0


def inspect_recording(path: Path) -> Inspection:
    """Decode one recording, part by part, and say what is wrong with it, if anything is.

    Raises nothing for a bad file.
    """
    try:
        status = path.stat()
        sha256 = sha256_file(path)
    except OSError as error:
        return Inspection(path=str(path), size_bytes=-1, changed_ns=0, problem=f"unreadable: {error.strerror}")
    seen = Inspection(path=str(path), size_bytes=status.st_size, changed_ns=status.st_mtime_ns, sha256=sha256)
    num_samples = clipped = 0
    peak, is_finite = 0.0, True
    try:
        with open_blocks(path) as decoded:
            for block in decoded.blocks:
                num_samples += block.shape[0]
                mean = mix_channels(block, 1)
                is_finite = is_finite and bool(np.isfinite(mean).all())
                if is_finite:
                    peak = max(peak, float(np.abs(mean).max()))
                    clipped += int((np.abs(block) >= FULL_SCALE).sum())
    except DataError as error:
        return dataclasses.replace(seen, problem=str(error).removeprefix(f"{path}: "))
    rate_hz = decoded.sampling_rate_hz
    lowest, highest = RATES_HZ
    problem = ""
    if not num_samples:
        return dataclasses.replace(seen, problem=NO_SAMPLES)
    if not is_finite:
        problem, peak, clipped = NON_FINITE, 0.0, 0
    elif not lowest <= rate_hz <= highest:
        problem = f"sampling rate {rate_hz} Hz: expected {lowest} to {highest} Hz; convert the recording"
    elif peak < SILENCE_PEAK:
        problem = f"silent: peak {peak:.1e} is below {SILENCE_PEAK:g}"
    return dataclasses.replace(
        seen,
        sampling_rate_hz=rate_hz,
        channels=decoded.channels,
        num_samples=num_samples,
        peak=peak,
        clipped_frac=clipped / (num_samples * decoded.channels),
        problem=problem,
    )


class Inspector:
    """`inspect_recording` with a memory on disk.

    Args:
        memory: The journal; made on first use.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._known: dict[tuple[str, int, int], Inspection] = {}
        names = {field.name for field in dataclasses.fields(Inspection)}
        for row in read_journal(memory):
            if set(row) == names and not row["problem"]:
                seen = Inspection(**row)
                self._known[(seen.path, seen.size_bytes, seen.changed_ns)] = seen

    def __call__(self, path: Path) -> Inspection:
        """What is known of a recording; decodes it unless this very file was seen before."""
        absolute = Path(os.path.abspath(path))
        known = self._known.get(_key(absolute))
        if known is not None:
            return known
        seen = inspect_recording(absolute)
        if seen.size_bytes >= 0:
            self._known[(seen.path, seen.size_bytes, seen.changed_ns)] = seen
        # What is wrong may lie here, not in the file: a missing package, a disk that could not be read.
        if not seen.problem:
            append_jsonl(self._memory, dataclasses.asdict(seen), durable=False)
        return seen


def _key(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError:
        return str(path), -1, 0
    return str(path), status.st_size, status.st_mtime_ns
