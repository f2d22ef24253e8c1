"""Small made-up recordings, a tokenizer that costs nothing, and a way to run and stop command lines."""

import hashlib
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch

from moss.command import run_command
from moss.data.manifest import Utterance
from moss.data.shard_index import TokenizerCard
from moss.data.shard_writer import CodedUtterance
from moss.spec import TokenizerSpec

REPOSITORY = Path(__file__).parents[1]
RATE_HZ = 16_000
SPEC = TokenizerSpec(sampling_rate_hz=RATE_HZ, samples_per_frame=1280, num_codebooks=3, codebook_size=16)


def write_tone(
    path: Path, seconds: float = 1.0, *, rate_hz: int = RATE_HZ, channels: int = 1, peak: float = 0.5
) -> Path:
    """A sine whose pitch depends on the file's name, so that no two recordings are alike."""
    pitch_hz = 100 + int(hashlib.sha256(path.name.encode()).hexdigest()[:4], 16) % 400
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    wave = peak * np.sin(2 * np.pi * pitch_hz * times)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.repeat(wave[:, None], channels, axis=1), rate_hz)
    return path


def write_folder(folder: Path, count: int, seconds: float = 1.0) -> Path:
    """Recordings `clip00`, `clip01`, ... with their texts."""
    for number in range(count):
        write_tone(folder / f"clip{number:02d}.wav", seconds)
        (folder / f"clip{number:02d}.txt").write_text(f"This is sentence number {number}.", encoding="utf-8")
    return folder


class FakeEncoder:
    """Codes from the loudness of each frame: deterministic, and a prefix of codebooks is a prefix of the codes."""

    def __init__(self, fingerprint: str = "f" * 16, refuse_longer_s: float = float("inf")) -> None:
        self.spec = SPEC
        self.fingerprint = fingerprint
        self.refuse_longer_s = refuse_longer_s
        self.calls = 0

    def encode(self, waves: Sequence[torch.Tensor], num_codebooks: int | None = None) -> list[torch.Tensor]:
        from moss.errors import DataError

        self.calls += 1
        if any(wave.shape[0] > self.refuse_longer_s * RATE_HZ for wave in waves):
            raise DataError("wave 0: longer than this tokenizer takes")
        return [self._codes(wave)[:, :num_codebooks] for wave in waves]

    def _codes(self, wave: torch.Tensor) -> torch.Tensor:
        frames = self.spec.num_frames(wave.shape[0])
        padded = torch.zeros(frames * self.spec.samples_per_frame)
        padded[: wave.shape[0]] = wave
        loudness = padded.view(frames, -1).abs().mean(1)
        codes = [(loudness * factor).long() % self.spec.codebook_size for factor in (31, 317, 3171)]
        return torch.stack(codes, dim=1)


def make_fake_encoder() -> FakeEncoder:
    """Picklable by name, for worker processes."""
    return FakeEncoder()


def card(fingerprint: str = "f" * 16, **changes: object) -> TokenizerCard:
    values = {"name": "fake", "fingerprint": fingerprint, "sampling_rate_hz": RATE_HZ, "samples_per_frame": 1280}
    return TokenizerCard(**(values | {"num_codebooks": 3, "codebook_size": 16} | changes))


def coded_utterances(count: int, prefix: str = "utt", seed: int = 0) -> list[CodedUtterance]:
    """Utterances with random codes in memory, lengths 1, 2, 3, ... frames."""
    generator = np.random.default_rng(seed)
    made = []
    for number in range(count):
        utterance = Utterance(
            id=f"{prefix}{number:03d}",
            audio="",
            text=f"Sentence {number}, é 你好.",
            language="en" if number % 2 else "fr",
            speaker=f"speaker{number % 3}",
            split="heldout" if number % 5 == 0 else "train",
            licence="CC0",
            source="test",
            extra={"instruction": f"read {number}"},
        )
        codes = generator.integers(0, 16, (number + 1, 3))
        made.append(CodedUtterance(utterance, 1280 * (number + 1) - 7, codes))
    return made


def dying_encoder() -> FakeEncoder:
    """Ends its process at once, as the system does to one that takes too much memory."""
    os._exit(9)


def build_fake(config: object, device: str) -> FakeEncoder:
    """Takes the place of `build_tokenizer`; picklable by name."""
    return FakeEncoder()


FAKE_TOKENIZER = (
    "import moss.tokenizer.build, tests.recordings as r; moss.tokenizer.build.build_tokenizer = r.build_fake"
)
"""A driver line: 02_encode_codes.py then encodes with `FakeEncoder`."""


def call_script(script: str, *arguments: str | Path) -> int:
    """Run one of data_prep/ inside this process, as its last lines do; returns the exit code."""
    main = runpy.run_path(str(REPOSITORY / "data_prep" / script))["main"]
    return run_command(main, [str(argument) for argument in arguments])


def run_script(script: str, *arguments: str | Path, setup: str = "") -> "subprocess.CompletedProcess[str]":
    """Run one of data_prep/ in a process of its own, after some Python lines."""
    driver = setup + _run_lines(script, arguments)
    command = [sys.executable, "-c", driver]
    return subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)


def interrupt_script(
    script: str,
    *arguments: str | Path,
    hang_in: str,
    after_calls: int,
    marker: Path,
    setup: str = "",
    sent: signal.Signals = signal.SIGINT,
) -> tuple[int, str]:
    """Send a signal, Ctrl-C unless told otherwise, to a data_prep script while it is inside one of its functions.

    Args:
        script: Name in data_prep/.
        arguments: Of the script.
        hang_in: "module:function" or "module:class.function" that stops for ever after some ordinary calls.
        after_calls: How many calls go through.
        marker: A file that tells when it hangs.
        setup: Python lines to run before.
        sent: The signal.

    Returns:
        Exit code and stderr; stderr ends only when all worker processes have ended too.
    """
    module, _, place = hang_in.partition(":")
    owner, _, function = f"module.{place}".rpartition(".")
    driver = f"""
import importlib, pathlib, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
{setup}
module = importlib.import_module({module!r})
original, calls = {owner}.{function}, [0]
def hang(*arguments, **keywords):
    calls[0] += 1
    if calls[0] <= {after_calls}:
        return original(*arguments, **keywords)
    pathlib.Path({str(marker)!r}).touch()
    time.sleep(600)
{owner}.{function} = hang
""" + _run_lines(script, arguments)
    process = subprocess.Popen(
        [sys.executable, "-c", driver], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=_environment()
    )
    try:
        deadline = time.monotonic() + 120
        while not marker.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(sent)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert marker.exists(), f"the script never reached {hang_in}: {errors}"
    marker.unlink()
    return process.returncode, errors


def _run_lines(script: str, arguments: Sequence[str | Path]) -> str:
    words = [script, *map(str, arguments)]
    return f"""
import runpy, sys
sys.argv = {words!r}
runpy.run_path({str(REPOSITORY / "data_prep" / script)!r}, run_name="__main__")
"""


def leftovers(folder: Path) -> list[str]:
    """Temporary files anywhere below a folder; there must be none after any ending."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.startswith(".tmp-"))


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
