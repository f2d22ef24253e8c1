"""One measurement of the tokenizer benchmark in a process of its own, for a peak of memory that is only its own.

Called by tokenizer.py; the argument is a JSON object, and so is the line that it prints.
"""

import ctypes
import dataclasses
import itertools
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tokenizer_reference as published
import torch
from tokenizer_cases import (
    FRAME_S,
    SIGNAL_BLOCK_S,
    decode_stream,
    encode_stream,
    random_tokenizer,
    scaled_config,
    signal,
    signal_blocks,
)
from torch import Tensor

from moss.command import run_command
from moss.config.load_tokenizer import load_tokenizer_config
from moss.config.tokenizer import CatConfig
from moss.errors import ConfigError
from moss.tokenizer.build import build_tokenizer
from moss.tokenizer.hf_map import write_weights
from moss.tokenizer.interface import StreamingTokenizer

OUT_OF_MEMORY, OUT_OF_TIME = "out of memory", "out of time"
WARM_UP_S = 1.0
LIVE_BYTES, USUAL_BYTES = 2**16, 2**25
_M_MMAP_THRESHOLD = -3
_FAILED_ALLOCATION = ("alloc", "Cannot allocate memory")


def measure(task: dict[str, Any], limit_s: float) -> dict[str, Any]:
    """Run `task` in a process of its own.

    Returns:
        What it measured, or `failed`: OUT_OF_MEMORY or OUT_OF_TIME.

    Raises:
        ConfigError: The task's settings are wrong.
        RuntimeError: It ended in another way.
    """
    command = [sys.executable, __file__, json.dumps(task)]
    environment = os.environ | {"OMP_NUM_THREADS": str(task["threads"])}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False, env=environment)
    except subprocess.TimeoutExpired:
        return {"failed": OUT_OF_TIME}
    if done.returncode == 0:
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    # The kernel's own end to a process is a kill.
    if done.returncode == -9 or any(word in last for word in _FAILED_ALLOCATION):
        return {"failed": OUT_OF_MEMORY}
    if last.startswith("error: "):
        raise ConfigError(last.removeprefix("error: "))
    raise RuntimeError(f"the measurement {task} failed: {done.stderr[-2000:]}")


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    task = json.loads(arguments[0])
    torch.set_num_threads(task["threads"])
    if task.get("address_space_bytes"):
        limit = task["address_space_bytes"]
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    result = _long(task) if task["what"] == "long" else _once(task)
    sys.stdout.write(json.dumps(result) + "\n")


def _once(task: dict[str, Any]) -> dict[str, Any]:
    """Memory of one call, weights and input not counted, and time of another."""
    config = scaled_config(task["width_divisor"], task["depth_divisor"])
    call = _ours(config, task) if task["side"] == "ours" else _theirs(config, task)
    with torch.no_grad():
        _map_from(LIVE_BYTES)
        call(*_inputs(config, task["what"], WARM_UP_S))
        given = _inputs(config, task["what"], task["audio_s"])
        before = _start_peak()
        result = call(*given)
        peak = peak_bytes() - before
        assert len(result), "something came out"
        _map_from(USUAL_BYTES)
        started_at = time.perf_counter()
        call(*given)
    return {"seconds": time.perf_counter() - started_at, "peak_bytes": peak}


def _inputs(config: CatConfig, what: str, audio_s: float) -> tuple[Tensor]:
    if what.startswith("encode"):
        return (signal(audio_s, config.sampling_rate_hz),)
    frames = config.spec().num_frames(round(audio_s * config.sampling_rate_hz))
    random = torch.Generator().manual_seed(0)
    return (torch.randint(config.quantizer.codebook_size, (frames, config.quantizer.num_codebooks), generator=random),)


def _ours(config: CatConfig, task: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    tokenizer = random_tokenizer(config)
    return {
        "encode": lambda wave: tokenizer.encode([wave])[0],
        "decode": lambda codes: tokenizer.decode([codes])[0],
        "encode_stream": lambda wave: encode_stream(tokenizer, wave),
        "decode_stream": lambda codes: decode_stream(tokenizer, codes),
    }[task["what"]]


def _theirs(config: CatConfig, task: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    state = random_tokenizer(config).model.state_dict()
    model = published.reference_tokenizer(Path(task["reference"]), config, state)
    return {
        "encode": lambda wave: published.encode(model, [wave])[0],
        "decode": lambda codes: published.decode(model, codes),
        "encode_stream": lambda wave: published.encode_stream(model, wave, FRAME_S),
        "decode_stream": lambda codes: published.decode_stream(model, codes, FRAME_S),
    }[task["what"]]


def _long(task: dict[str, Any]) -> dict[str, Any]:
    """Encode a long recording that is never in memory as a whole; the peak is the whole process'."""
    with tempfile.TemporaryDirectory() as folder:
        config = load_tokenizer_config(task["tokenizer"])
        if task["random_weights"]:
            config = _with_random_weights(config, Path(folder))
        tokenizer = build_tokenizer(config)
    if not hasattr(tokenizer, "encoder_stream"):
        raise ConfigError(f"--tokenizer {task['tokenizer']}: has no streams; name one of kind cat")
    streaming: StreamingTokenizer = tokenizer
    stream = streaming.encoder_stream()
    count = math.ceil(task["audio_s"] / SIGNAL_BLOCK_S)
    frames = 0
    busy_s = 0.0
    for block in itertools.islice(signal_blocks(streaming.spec.sampling_rate_hz), count):
        started_at = time.perf_counter()
        frames += len(stream.push(block))
        busy_s += time.perf_counter() - started_at
    frames += len(stream.finish())
    return {"seconds": busy_s, "peak_bytes": peak_bytes(), "frames": frames, "audio_s": count * SIGNAL_BLOCK_S}


def _with_random_weights(config: Any, folder: Path) -> CatConfig:
    if not isinstance(config, CatConfig):
        raise ConfigError("--random-weights: only for a tokenizer of kind cat")
    path = folder / "model.safetensors"
    write_weights(path, random_tokenizer(config).model)
    return dataclasses.replace(config, weights=path)


def _map_from(smallest_bytes: int) -> None:
    """Have larger allocations return to the system as soon as they are freed, where the C library is glibc.

    Without it the peak is mostly that of glibc's free lists: between one and four times what was live, by chance.
    """
    options = getattr(ctypes.CDLL(None), "mallopt", None)
    if options is not None:
        options(_M_MMAP_THRESHOLD, smallest_bytes)


def _start_peak() -> int:
    """Give back what was freed, forget the peak so far, and return the present memory in bytes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    # Linux: the peak starts again from here.
    Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def peak_bytes() -> int:
    """The largest resident memory of this process so far, or since `_start_peak`."""
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name + ":")).split()[1])


if __name__ == "__main__":
    sys.exit(run_command(main))
