"""Published checkpoint folders <-> ours, tensor by tensor: a model never has to fit into memory.

    python -m moss.model.convert import HF_FOLDER OUR_FOLDER [--member ttsd --template moss_ttsd_v1]
    python -m moss.model.convert export OUR_FOLDER HF_FOLDER [--support CHECKOUT]

An imported folder keeps every file of the published one, unread; exporting it gives them back, byte for byte where
nothing was trained in between. Nothing in either folder is executed.
"""

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from moss.command import num_bytes, run_command
from moss.config.model import Member, Template
from moss.errors import CheckpointError
from moss.model.checkpoint import (
    CARD_FILE,
    TOKENIZER_FILE,
    ModelCard,
    published_card,
    read_card,
    unfinished,
)
from moss.model.hf_map import CONFIG_FILE, published_config, read_config, tied_names
from moss.model.published_files import (
    LAYOUT_FILE,
    PUBLISHED_FOLDER,
    copy_files,
    copy_support,
    files_beside_weights,
    keep_published,
    layout_of,
    missing_files,
    write_tokenizer_files,
)
from moss.model.safetensors_files import (
    INDEX_FILE,
    Advance,
    StoredTensor,
    StoredWeights,
    header_of,
    index_text,
    open_weights,
    write_file,
    write_weights,
)
from moss.model.tensor_loading import check_weights, expected_shapes, has_adapters

logger = logging.getLogger(__name__)

DEFAULT_SHARD_BYTES = 5_000_000_000
_SPARE_BYTES = 50_000_000


def import_folder(
    source: Path,
    target: Path,
    *,
    member: Member | None = None,
    template: Template | None = None,
    overwrite: bool = False,
) -> ModelCard:
    """Make a checkpoint folder of ours from a published one.

    Args:
        source: config.json, safetensors (one file, or shards with their index), tokenizer and processor files.
        target: The new folder; it appears when it is whole.
        member: What the checkpoint was trained to do; config.json does not say. See `hf_map.model_config`.
        template: The prompt format it was trained with, likewise.
        overwrite: Replace a checkpoint that is there.

    Raises:
        CheckpointError: The folder is incomplete, damaged or of another model; the target exists; the disk is full.
    """
    card = published_card(source, member, template)
    weights = open_weights(source)
    check_weights(weights, expected_shapes(card.model), tied_names(card.model))
    others = files_beside_weights(source)
    size = weights.num_bytes + sum((source / name).stat().st_size for name in others)
    with _new_folder(target, size, overwrite, [source]) as folder, _progress(weights.num_bytes, "importing") as advance:
        for file in weights.files:
            write_file(folder / file.path.name, file.header, file.tensors, advance)
        if weights.index is not None:
            (folder / INDEX_FILE).write_text(weights.index, encoding="utf-8")
        keep_published(source, folder, weights)
        if card.text_tokenizer.path is not None:
            inside = Path(PUBLISHED_FOLDER, TOKENIZER_FILE)
            card = replace(card, text_tokenizer=replace(card.text_tokenizer, path=inside))
        (folder / CARD_FILE).write_text(card.to_json(), encoding="utf-8")
    return read_card(target)


def export_folder(
    source: Path,
    target: Path,
    *,
    original: Path | None = None,
    support: Path | None = None,
    max_shard_bytes: int | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Make a published folder from a checkpoint folder of ours.

    Args:
        source: Ours.
        target: The new folder; it appears when it is whole.
        original: The published folder that the training started from; its files are used where the checkpoint keeps
            none of its own.
        support: A checkout of the published code, whose Python files are copied unread.
        max_shard_bytes: Size of a weight file; None: as in the original, else 5 GB.
        overwrite: Replace a folder that is there.

    Returns:
        Files that the published processors need and the new folder lacks.

    Raises:
        CheckpointError: The folder is incomplete, damaged or of another model; the target exists; the disk is full.
    """
    card, weights = read_card(source), open_weights(source)
    tied = tied_names(card.model)
    check_weights(weights, expected_shapes(card.model), tied)
    if has_adapters(weights):
        raise CheckpointError(f"{source}: has adapters; merge them first: python -m moss.model.lora merge {source} OUT")
    kept, layout = _kept(source, original)
    others = [] if kept is None else [name for name in files_beside_weights(kept) if name != Path(CONFIG_FILE)]
    places = [source] if original is None else [source, original]
    with (
        _new_folder(target, weights.num_bytes, overwrite, places) as folder,
        _progress(weights.num_bytes, "exporting") as advance,
    ):
        _write_config(card, kept, folder)
        if kept is not None:
            copy_files(kept, folder, others)
        else:
            write_tokenizer_files(folder, card.model, card.text_tokenizer)
        if support is not None:
            copy_support(support, folder, card.model.architecture)
        if layout is None or max_shard_bytes is not None:
            own = {name: tensor for name, tensor in sorted(weights.tensors.items()) if name not in tied}
            write_weights(folder, own, max_shard_bytes=max_shard_bytes or DEFAULT_SHARD_BYTES, advance=advance)
        else:
            _write_as_before(weights, layout, tied, folder, advance)
        return missing_files(folder, card.model.architecture)


def _kept(source: Path, original: Path | None) -> tuple[Path | None, dict[str, Any] | None]:
    """Folder of the original's files beside the weights, and how those lay in files; None where nobody kept them."""
    if (source / PUBLISHED_FOLDER).is_dir():
        path = source / LAYOUT_FILE
        try:
            layout = json.loads(path.read_text(encoding="utf-8"))
            names = [file["name"] for file in layout["files"]]
            [(file["header"], json.loads(file["header"])) for file in layout["files"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path}: cannot be read ({error!r}); name the published folder with --original"
            ) from error
        if any(Path(name).name != name for name in names):
            raise CheckpointError(f"{path}: names a file outside the folder; import the checkpoint again")
        return source / PUBLISHED_FOLDER, layout
    if original is None:
        return None, None
    return original, layout_of(open_weights(original))


def _write_config(card: ModelCard, kept: Path | None, folder: Path) -> None:
    """config.json: the original's bytes where our settings say the same."""
    rate = None if card.tokenizer is None else card.tokenizer.get("sampling_rate_hz")
    content, before = None, None
    if kept is not None:
        before, content = read_config(kept)
    made = published_config(card.model, before, rate)
    if content is None or made != before:
        content = (json.dumps(made, indent=2, ensure_ascii=False) + "\n").encode()
    (folder / CONFIG_FILE).write_bytes(content)


def _write_as_before(
    weights: StoredWeights, layout: dict[str, Any], tied: dict[str, str], folder: Path, advance: Advance
) -> None:
    """Weights in the original's files and order; headers are the original's where dtypes are the same."""
    stored = weights.tensors
    plan: dict[str, tuple[str, list[tuple[str, StoredTensor]]]] = {}
    for file in layout["files"]:
        entries = json.loads(file["header"])
        metadata = entries.pop("__metadata__", {})
        begins = {name: entry["data_offsets"][0] for name, entry in entries.items()}
        tensors: list[tuple[str, StoredTensor]] = []
        for name in sorted(begins, key=begins.__getitem__):
            # A tied weight is in the file that training wrote under either name.
            tensor = stored.get(name) or stored.get(tied.get(name, ""))
            if tensor is None:
                raise CheckpointError(
                    f"{weights.source}: no {name}, which {file['name']} of the original has; export with "
                    "--max-shard-bytes to make new files"
                )
            tensors.append((name, tensor))
        header = file["header"]
        if any((t.dtype, list(t.shape)) != (entries[name]["dtype"], entries[name]["shape"]) for name, t in tensors):
            header = header_of(tensors, metadata)
        plan[file["name"]] = (header, tensors)
    written = {name for _, tensors in plan.values() for name, _ in tensors}
    left_out = sorted(stored.keys() - written - tied.keys())
    if left_out:
        raise CheckpointError(
            f"{weights.source}: the original's files have no place for {', '.join(left_out)}; export with "
            "--max-shard-bytes to make new files"
        )
    for name, (header, tensors) in plan.items():
        write_file(folder / name, header, [tensor for _, tensor in tensors], advance)
    if layout["index"] is not None:
        same = all(header == file["header"] for (header, _), file in zip(plan.values(), layout["files"], strict=True))
        total = sum(tensor.num_bytes for _, tensors in plan.values() for _, tensor in tensors)
        shards = {name: tensors for name, (_, tensors) in plan.items()}
        (folder / INDEX_FILE).write_text(layout["index"] if same else index_text(shards, total), encoding="utf-8")


@contextmanager
def _new_folder(target: Path, num_bytes: int, overwrite: bool, sources: Sequence[Path]) -> Iterator[Path]:
    """A folder that gets the name `target` when the block ends well."""
    inside = [source for source in sources if source.resolve() in (target.resolve(), *target.resolve().parents)]
    if inside or any(target.resolve() in source.resolve().parents for source in sources):
        raise CheckpointError(f"{target}: overlaps with the folder that is read; choose another target")
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        is_checkpoint = (target / CARD_FILE).is_file() or (target / CONFIG_FILE).is_file()
        if not overwrite or not is_checkpoint:
            remedy = "add --overwrite to replace it" if is_checkpoint else "it is no checkpoint, choose another name"
            raise CheckpointError(f"{target}: exists already; {remedy}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < num_bytes + _SPARE_BYTES:
            raise CheckpointError(
                f"{target}: needs {num_bytes / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free on its disk; free some "
                "space or choose another disk"
            )
        with unfinished(target) as folder:
            yield folder
            if target.is_dir():
                shutil.rmtree(target)
    except OSError as error:
        raise CheckpointError(f"{target}: could not be written ({error.strerror or error}); nothing is left") from error


@contextmanager
def _progress(num_bytes: int, description: str) -> Iterator[Advance]:
    """A bar over bytes on stderr; where that is no terminal, nothing is drawn."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=num_bytes)
        yield lambda written: progress.advance(task, written)


def parser() -> argparse.ArgumentParser:
    """All options."""
    made = argparse.ArgumentParser(
        prog="python -m moss.model.convert", description="Convert between published checkpoint folders and ours."
    )
    commands = made.add_subparsers(dest="command", required=True)
    to_ours = commands.add_parser("import", help="published folder -> ours")
    to_ours.add_argument("source", type=Path, metavar="HF_FOLDER", help="config.json and safetensors")
    to_ours.add_argument("target", type=Path, metavar="OUR_FOLDER")
    to_ours.add_argument(
        "--member", type=Member, choices=list(Member), help="what it was trained to do (default: tts, or realtime)"
    )
    to_ours.add_argument(
        "--template", type=Template, choices=list(Template), help="prompt format (default: the member's)"
    )
    to_theirs = commands.add_parser("export", help="ours -> published folder")
    to_theirs.add_argument("source", type=Path, metavar="OUR_FOLDER", help="moss.json and safetensors")
    to_theirs.add_argument("target", type=Path, metavar="HF_FOLDER")
    to_theirs.add_argument(
        "--original", type=Path, help="published folder that training started from, if the checkpoint kept no files"
    )
    to_theirs.add_argument("--support", type=Path, help="checkout of the published code; its .py files are copied")
    to_theirs.add_argument(
        "--max-shard-bytes", type=num_bytes, help="size of a weight file, like 5GB (default: as in the original, 5GB)"
    )
    for command in (to_ours, to_theirs):
        command.add_argument("--overwrite", action="store_true", help="replace a checkpoint that is there")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    return run_command(_convert, arguments, interrupted="nothing is left of the new folder")


def _convert(arguments: Sequence[str]) -> None:
    options = vars(parser().parse_args(arguments))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    command, source, target = (options.pop(name) for name in ("command", "source", "target"))
    if command == "import":
        card = import_folder(source, target, **options)
        sys.stdout.write(
            f"{target}: {card.model.architecture}, {card.model.num_codebooks} codebooks, member "
            f"{card.model.member.value}, template {card.model.template.value}\n"
        )
        return
    missing = export_folder(source, target, **options)
    sys.stdout.write(f"{target}: exported\n")
    if missing:
        sys.stdout.write(
            "the published processors also need these files, which are not there (--support gives the .py files):\n"
            + "".join(f"  {name}\n" for name in missing)
        )


if __name__ == "__main__":
    raise SystemExit(main())
