"""Peak memory of converting a published checkpoint: `python benchmarks/convert.py` (needs about 34 GB of disk).

Writes a bfloat16 folder of the published 8B layout (MossTTSDelay, 32 codebooks; weights all zero, but every byte lies
in a file and is read), imports it in a process of its own, prints that process's peak memory, and deletes both folders.
"""

import argparse
import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from moss.command import run_command
from moss.config.compose import load_config
from moss.config.model import ModelConfig
from moss.config.train import TrainConfig
from moss.errors import DataError
from moss.model.hf_map import published_config
from moss.model.safetensors_files import StoredTensor, header_of, index_text
from moss.model.tensor_loading import expected_shapes

LIMIT_GB = 3.0
SHARD_BYTES = 5_000_000_000
BYTES_PER_WEIGHT = 2
CHUNK_BYTES = 16 * 2**20


def main(arguments: Sequence[str]) -> None:
    """Write, convert, measure, delete."""
    options = parser().parse_args(arguments)
    config = load_config(TrainConfig, "train", [f"model={options.preset}"]).model
    config = replace(config, num_layers=max(1, round(config.num_layers * options.scale)))
    num_bytes = sum(BYTES_PER_WEIGHT * math.prod(shape) for shape in expected_shapes(config).values())
    options.work_dir.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(options.work_dir).free
    if free < 2.1 * num_bytes:
        raise DataError(
            f"{options.work_dir}: two folders of {num_bytes / 1e9:.1f} GB do not fit into {free / 1e9:.1f} GB; name "
            "another folder with --work-dir, or a smaller --scale"
        )
    with tempfile.TemporaryDirectory(dir=options.work_dir) as folder:
        source, target = Path(folder, "published"), Path(folder, "ours")
        write_zeros(source, config)
        started = time.perf_counter()
        command = [sys.executable, "-m", "moss.model.convert", "import", str(source), str(target)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        # ru_maxrss of the only child so far, in KiB on Linux.
        peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    sys.stdout.write(
        f"{options.preset}, scale {options.scale}: {num_bytes / 1e9:.2f} GB in bfloat16\n"
        f"import: {seconds:.1f} s, {num_bytes / 1e9 / seconds:.2f} GB/s\n"
        f"peak resident memory: {peak_gb:.2f} GB (limit {LIMIT_GB:.0f} GB)\n"
    )
    if peak_gb >= LIMIT_GB:
        raise DataError(f"the conversion took {peak_gb:.2f} GB, more than {LIMIT_GB:.0f} GB")


def parser() -> argparse.ArgumentParser:
    """All options."""
    made = argparse.ArgumentParser(prog="benchmarks/convert.py", description=(__doc__ or "").partition("\n\n")[0])
    made.add_argument("--preset", default="delay_8b", help="of configs/model/ (default: %(default)s)")
    made.add_argument("--scale", type=float, default=1.0, help="share of the layers, for a smaller folder")
    made.add_argument("--work-dir", type=Path, default=Path("runs"), help="disk to use (default: %(default)s)")
    return made


def write_zeros(folder: Path, config: ModelConfig) -> None:
    """A published folder in shards, with zeros that are written and not left as holes of the file."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(published_config(config), indent=2))
    shards: list[list[tuple[str, StoredTensor]]] = [[]]
    for name, shape in expected_shapes(config).items():
        tensor = StoredTensor(name, folder, "BF16", shape, 0, BYTES_PER_WEIGHT * math.prod(shape))
        if sum(held.num_bytes for _, held in shards[-1]) + tensor.num_bytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append((name, tensor))
    files = {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}
    for file, shard in files.items():
        header = header_of(shard, {"format": "pt"}).encode()
        with open(folder / file, "wb") as opened:
            opened.write(len(header).to_bytes(8, "little") + header)
            for _, tensor in shard:
                for start in range(0, tensor.num_bytes, CHUNK_BYTES):
                    opened.write(bytes(min(CHUNK_BYTES, tensor.num_bytes - start)))
    total = sum(tensor.num_bytes for shard in shards for _, tensor in shard)
    (folder / "model.safetensors.index.json").write_text(index_text(files, total))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(run_command(main))
