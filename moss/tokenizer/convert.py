"""Write a Cat as a published checkpoint folder: config.json and safetensors under the names of either generation.

    python -m moss.tokenizer.convert --from SOURCE --to NEW_FOLDER [--names v1|v2] [--dtype float32|bfloat16]

The source is a name of configs/tokenizer with weights, such as `cat_embedded`, a .yaml file, a checkpoint folder (ours
or published), or a .safetensors file whose settings `--tokenizer` names. Weights go from file to file, a shard at a
time, so that the tokenizer never has to fit into memory.
"""

import argparse
import json
import logging
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from moss.command import num_bytes, run_command
from moss.config.load_tokenizer import (
    CARD_FILE,
    INDEX_FILE,
    PUBLISHED_CONFIG,
    WEIGHTS_FILE,
    load_tokenizer_config,
)
from moss.config.published_tokenizer import Generation, generation_of, published_config, unfit_for
from moss.config.tokenizer import CatConfig, TransformerStage
from moss.errors import CheckpointError, ConfigError
from moss.tokenizer.build import weights_path
from moss.tokenizer.hf_map import canonical_key, key_48khz, match_keys, read_weights, shapes_of

log = logging.getLogger(__name__)

DEFAULT_SHARD_BYTES = 2_000_000_000
_SPARE_BYTES = 50_000_000
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl")

Advance = Callable[[int], object]
"""Called with the number of bytes that were just written."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor to write: read from `source`, or the identity matrix where a projection is made up."""

    name: str
    source: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, state: Mapping[str, Tensor]) -> Tensor:
        tensor = torch.eye(self.shape[0]) if self.source is None else state[self.source]
        return tensor.detach().to("cpu", self.dtype).contiguous()


def write_published(
    folder: Path,
    config: CatConfig,
    state: Mapping[str, Tensor],
    generation: Generation | None = None,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    copied: Sequence[Path] = (),
    advance: Advance | None = None,
    source: str = "the weights",
) -> Generation:
    """Write a published checkpoint folder; it appears when it is whole.

    In the v2 form, projections that a network does without become identity matrices, which change no value.

    Args:
        folder: Must not exist, or be empty.
        config: The network.
        state: Its weights, both halves, under any published names: a model's state dict, or a `StoredState`.
        generation: Whose code shall read it; null for v1 where that can, else v2.
        dtype: Of the encoder and the decoder; the quantizer stays float32. Null: as they are.
        max_shard_bytes: Largest size of a weight file; a single tensor may exceed it.
        copied: Files that are put beside the weights, unread.
        advance: Told the bytes written, for a progress bar.
        source: What an error calls the weights.

    Returns:
        The generation that was written.

    Raises:
        CheckpointError: The folder exists, the weights are not this network's, the generation cannot run it, or the
            disk is full.
    """
    chosen = generation or (Generation.v2 if unfit_for(config, Generation.v1) else Generation.v1)
    problems = unfit_for(config, chosen)
    if problems:
        raise CheckpointError("\n  ".join([f"{folder}: the network has no form in generation {chosen}:", *problems]))
    entries = _plan(config, state, chosen, dtype, source)
    transformer = next((e.dtype for e in entries if not e.name.startswith("quantizer.")), torch.float32)
    values = published_config(config, chosen, str(transformer).removeprefix("torch."))
    with _new_folder(folder, sum(entry.num_bytes for entry in entries)) as temporary:
        _write_json(temporary / PUBLISHED_CONFIG, values)
        _write_shards(temporary, entries, state, max_shard_bytes, advance)
        for path in copied:
            shutil.copyfile(path, temporary / path.name)
    return chosen


def named_source(name: str, tokenizer: str | None = None) -> tuple[CatConfig, Path]:
    """Settings and weights, a file or a folder, of a name, a .yaml file, a checkpoint folder or a weight file.

    Args:
        name: As `load_tokenizer_config` takes it, or a weight file or folder whose settings `tokenizer` names.
        tokenizer: Settings, as `load_tokenizer_config` takes them; null where `name` says its own.

    Raises:
        ConfigError: The settings are wrong, not a Cat's, without weights, or not named for a weight file.
        CheckpointError: A folder that holds no tokenizer.
    """
    path = Path(name)
    if tokenizer is None and path.suffix == ".safetensors" and not path.is_dir():
        raise ConfigError(f"{name}: a weight file does not say its settings; name them with --tokenizer NAME")
    config = load_tokenizer_config(name) if tokenizer is None else load_tokenizer_config(tokenizer, path)
    if not isinstance(config, CatConfig):
        raise ConfigError(f"{tokenizer or name}: a {config.kind!r} tokenizer has no published form, only a Cat has")
    if config.weights is None and config.shipped is None:
        raise ConfigError(
            f"{name}: settings without weights; write --from FILE --tokenizer {name}, or name a checkpoint folder. "
            "cat_embedded comes with weights"
        )
    return config, weights_path(config)


def convert_weights(
    config: CatConfig,
    source: Path,
    target: Path,
    generation: Generation | None = None,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    advance: Advance | None = None,
) -> Generation:
    """Write a published folder from a network's weight file or folder. See `write_published`.

    Of a published folder the other files are copied, and the generation is kept where none is named.

    Raises:
        CheckpointError: As `write_published`; or the source holds no weights.
    """
    if source.is_dir() and (target.resolve() == source.resolve() or source.resolve() in target.resolve().parents):
        raise CheckpointError(f"{target}: lies in the folder that is read; choose another target")
    state = read_weights(source)
    others: list[Path] = []
    if not (source / CARD_FILE).is_file() and (source / PUBLISHED_CONFIG).is_file():
        values = json.loads((source / PUBLISHED_CONFIG).read_text(encoding="utf-8"))
        generation = generation or generation_of(values)
        named = (PUBLISHED_CONFIG, INDEX_FILE)
        others = [p for p in sorted(source.iterdir()) if p.is_file() and p.name not in named]
        others = [p for p in others if p.suffix not in _NOT_COPIED]
    return write_published(
        target,
        config,
        state,
        generation,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
        copied=others,
        advance=advance,
        source=str(source),
    )


def _plan(
    config: CatConfig, state: Mapping[str, Tensor], generation: Generation, dtype: torch.dtype | None, source: str
) -> list[_Entry]:
    """What to write, in the order of the names."""
    shapes = shapes_of(state)
    places = match_keys(shapes, config, source)
    spelling = key_48khz if generation is Generation.v2 else canonical_key
    stored = _dtypes(state)
    entries = [
        _Entry(spelling(name), key, shapes[key], _target_dtype(name, stored[key], dtype))
        for name, key in places.items()
    ]
    if generation is Generation.v2:
        common = next((entry.dtype for entry in entries if not entry.name.startswith("quantizer.")), torch.float32)
        entries += [_Entry(name, None, (width, width), common) for name, width in _identities(config)]
    return sorted(entries, key=lambda entry: entry.name)


def _target_dtype(name: str, stored: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    if name.startswith("quantizer."):
        # One rounded codebook entry changes codes, and the tables are small.
        return torch.float32
    return stored if wanted is None else wanted


def _dtypes(state: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    # A StoredState maps the file into memory: asking for a dtype reads none of the values.
    return {key: state[key].dtype for key in state}


def _identities(config: CatConfig) -> Iterator[tuple[str, int]]:
    """Projections that v2 has and this network does without, with their width."""
    for side, stages in (("encoder", config.encoder), ("decoder", config.decoder_stages())):
        for i, stage in enumerate(stages):
            if isinstance(stage, TransformerStage):
                if not stage.has_input_projection:
                    yield f"{side}.{i}.input_proj.weight", stage.hidden_size
                if not stage.has_output_projection:
                    yield f"{side}.{i}.output_proj.weight", stage.hidden_size


def _write_shards(
    folder: Path, entries: Sequence[_Entry], state: Mapping[str, Tensor], max_bytes: int, advance: Advance | None
) -> None:
    from safetensors.torch import save_file

    shards: list[list[_Entry]] = [[]]
    filled = 0
    for entry in entries:
        if shards[-1] and filled + entry.num_bytes > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += entry.num_bytes
    names = [WEIGHTS_FILE]
    if len(shards) > 1:
        names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
        weight_map = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
        total = sum(entry.num_bytes for entry in entries)
        _write_json(
            folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        )
    for name, shard in zip(names, shards, strict=True):
        save_file({entry.name: entry.read(state) for entry in shard}, folder / name, metadata={"format": "pt"})
        if advance is not None:
            advance(sum(entry.num_bytes for entry in shard))


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _new_folder(target: Path, num_bytes: int) -> Iterator[Path]:
    """A folder that gets the name `target` when the block ends well, and vanishes when it does not."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target}: exists already and is never overwritten; delete it or choose another name")
    if target.resolve() == Path.cwd():
        raise CheckpointError(f"{target}: is the current folder; name a new one, which is made whole or not at all")
    temporary = target.with_name(f".unfinished-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < num_bytes + _SPARE_BYTES:
            raise CheckpointError(
                f"{target}: needs {num_bytes / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free on its disk; free some "
                "space or choose another disk"
            )
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        temporary.replace(target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{target}: could not be written ({reason}); nothing is left") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _progress(source: Path) -> Iterator[Advance]:
    """A bar over bytes on stderr; where that is no terminal, nothing is drawn."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    files = source.glob("*.safetensors") if source.is_dir() else [path for path in (source,) if path.is_file()]
    total = sum(path.stat().st_size for path in files)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("writing", total=total)
        yield lambda written: progress.advance(task, written)


_DTYPE_HELP = (
    "of encoder and decoder; the quantizer is always written as float32 (default: as stored; the shipped cat_embedded "
    "is stored, and so written, as float16)"
)


def parser() -> argparse.ArgumentParser:
    """All options."""
    made = argparse.ArgumentParser(
        prog="python -m moss.tokenizer.convert", description="Write a Cat tokenizer as a published checkpoint folder."
    )
    add = made.add_argument
    add(
        "--from",
        dest="source",
        required=True,
        metavar="SOURCE",
        help="name of configs/tokenizer that has weights, .yaml file, checkpoint folder (ours or published), or a "
        ".safetensors file with --tokenizer; a name goes before a folder called the same, which is NAME/",
    )
    add(
        "--tokenizer",
        metavar="NAME",
        help="settings of the weights that --from names: as in configs/tokenizer, or a .yaml file",
    )
    add("--to", dest="target", type=Path, required=True, metavar="FOLDER", help="new folder; never overwritten")
    add(
        "--names",
        choices=[kind.value for kind in Generation],
        help="whose names and config.json: v1 (24 kHz mono) or v2 (48 kHz stereo, Nano); default: the source's own, or "
        "v1 where it can be",
    )
    add("--dtype", choices=list(_DTYPES), help=_DTYPE_HELP)
    add(
        "--max-shard-bytes",
        type=num_bytes,
        default=DEFAULT_SHARD_BYTES,
        metavar="BYTES",
        help="largest weight file, and the memory needed (default: %(default)s)",
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    return run_command(_convert, arguments, interrupted="nothing is left")


def _convert(arguments: Sequence[str]) -> None:
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config, weights = named_source(options.source, options.tokenizer)
    with _progress(weights) as advance:
        chosen = convert_weights(
            config,
            weights,
            options.target,
            None if options.names is None else Generation(options.names),
            dtype=None if options.dtype is None else _DTYPES[options.dtype],
            max_shard_bytes=options.max_shard_bytes,
            advance=advance,
        )
    files = sorted(path.name for path in options.target.glob("*.safetensors"))
    sys.stdout.write(f"{options.target}: written in the form of {chosen}, {len(files)} weight file(s)\n")


if __name__ == "__main__":
    raise SystemExit(main())
