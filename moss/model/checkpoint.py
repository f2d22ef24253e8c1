"""A generator on disk: a folder with `moss.json` and weights in `model.safetensors` or in shards with an index.

`moss.json` says everything that using the weights needs: geometry, text tokenizer, audio tokenizer, prompt template.
A folder that names another architecture, template or tokenizer is refused by name; nothing in it is executed.
Published folders are read too: there config.json takes the place of `moss.json`.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moss.config.model import Member, ModelConfig, Template, TextTokenizerConfig, TextTokenizerKind
from moss.config.schema import build, to_plain
from moss.errors import CheckpointError, ConfigError
from moss.model.build import build_model
from moss.model.hf_map import CONFIG_FILE, model_config, read_config
from moss.model.interface import Generator
from moss.model.published_files import LAYOUT_FILE, PUBLISHED_FOLDER, TOKENIZER_FILE, copy_tokenizer, keep_published
from moss.model.safetensors_files import WEIGHTS_FILE, open_weights, write_weights
from moss.model.tensor_loading import load_tensors, without_parameters
from moss.sequence.templates import TEMPLATES

FORMAT_VERSION = 2
_READABLE_VERSIONS = (1, FORMAT_VERSION)
"""Version 1 knew one template and one file of weights."""
CARD_FILE = "moss.json"
_RESTORE = "copy the checkpoint again, or choose an older one"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What `moss.json` holds.

    Attributes:
        model: Geometry, member and template.
        text_tokenizer: Which BPE; a path is the file's, wherever the checkpoint lies.
        text_fingerprint: Its hash; None where a published folder has no file to take it of.
        tokenizer: The audio tokenizer's card: name, fingerprint, rates, codebooks; None where the folder does not say.
        tokenizer_config: Settings that rebuild the audio tokenizer; None likewise.
        step: Optimizer steps trained here.
    """

    model: ModelConfig
    text_tokenizer: TextTokenizerConfig
    text_fingerprint: str | None
    tokenizer: dict[str, Any] | None
    tokenizer_config: dict[str, Any] | None
    step: int

    def to_json(self) -> str:
        """The file's content."""
        template = self.model.template
        content = {
            "format_version": FORMAT_VERSION,
            "architecture": self.model.architecture,
            "num_codebooks": self.model.num_codebooks,
            "template": {"name": template.value, "hash": TEMPLATES[template].hash},
            "model": to_plain(self.model),
            "text_tokenizer": {**to_plain(self.text_tokenizer), "fingerprint": self.text_fingerprint},
            "tokenizer": self.tokenizer,
            "tokenizer_config": self.tokenizer_config,
            "step": self.step,
        }
        return json.dumps(content, indent=2, sort_keys=True) + "\n"


def save_weights(state: Mapping[str, Tensor], folder: Path) -> None:
    """Write `model.safetensors`; the caller makes the folder appear at once by renaming it."""
    write_weights(folder, dict(sorted(state.items())))


def save_generator(model: Generator, card: ModelCard, folder: Path, source: Path | None = None) -> None:
    """Write a folder that `load_generator` reads; it appears when it is whole.

    Args:
        model: Its weights are written in their dtype.
        card: Of the model; a text tokenizer's file is copied into the folder.
        folder: Must not exist.
        source: The checkpoint that the model was loaded from; what it kept of a published folder is kept again.

    Raises:
        CheckpointError: The folder exists already.
    """
    if folder.exists():
        raise CheckpointError(f"{folder}: exists already; choose another folder or delete it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(folder) as temporary:
        save_weights(model.state_dict(), temporary)
        if source is not None:
            carry_published(source, temporary)
        if card.text_tokenizer.path is not None:
            copy_tokenizer(card.text_tokenizer.path, temporary / TOKENIZER_FILE)
            card = replace(card, text_tokenizer=replace(card.text_tokenizer, path=Path(TOKENIZER_FILE)))
        (temporary / CARD_FILE).write_text(card.to_json(), encoding="utf-8")


def carry_published(source: Path, target: Path) -> None:
    """Copy what a checkpoint keeps of its published folder, or is one's, so that a later export has it."""
    if is_published(source):
        keep_published(source, target, open_weights(source))
    if (source / PUBLISHED_FOLDER).is_dir():
        shutil.copytree(source / PUBLISHED_FOLDER, target / PUBLISHED_FOLDER)
    if (source / LAYOUT_FILE).is_file():
        shutil.copyfile(source / LAYOUT_FILE, target / LAYOUT_FILE)


def is_published(folder: Path) -> bool:
    """Whether a folder is a published checkpoint and not one of ours."""
    return not (folder / CARD_FILE).is_file() and (folder / CONFIG_FILE).is_file()


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its name on success and vanishes on failure."""
    temporary = folder.with_name(f".unfinished-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_card(folder: Path) -> ModelCard:
    """Read and check `moss.json`.

    Raises:
        CheckpointError: Not a generator's folder, another format or prompt template, or settings that do not fit.
    """
    path = folder / CARD_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: no {CARD_FILE}, so this is not a checkpoint folder; name a step folder below a run's "
            "checkpoints/, or import a published folder with python -m moss.model.convert import"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {_RESTORE}") from error
    try:
        return _checked_card(content, path)
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{path}: damaged or of another program ({error}); {_RESTORE}") from error


def published_card(folder: Path, member: Member | None = None, template: Template | None = None) -> ModelCard:
    """The card of a published folder: its config.json and tokenizer.json; the audio tokenizer stays unknown.

    Args:
        folder: With config.json.
        member: See `hf_map.model_config`.
        template: Likewise.

    Raises:
        CheckpointError: config.json is missing, not JSON, or of no model that this program has.
    """
    published = read_config(folder)[0]
    try:
        config = model_config(published, member, template)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}/{error}") from error
    path = folder / TOKENIZER_FILE
    text_tokenizer, fingerprint = TextTokenizerConfig(kind=TextTokenizerKind.qwen), None
    if path.is_file():
        text_tokenizer = TextTokenizerConfig(kind=TextTokenizerKind.file, path=path)
        # The fingerprint that the text tokenizer gives itself: hash of the file's text.
        fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return ModelCard(
        model=config,
        text_tokenizer=text_tokenizer,
        text_fingerprint=fingerprint,
        tokenizer=None,
        tokenizer_config=None,
        step=0,
    )


def load_generator(
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    member: Member | None = None,
    template: Template | None = None,
) -> tuple[Generator, ModelCard]:
    """Build the model of a checkpoint folder and load its weights tensor by tensor, in eval mode.

    Args:
        folder: Ours (`moss.json`) or a published one (config.json).
        dtype: Of the parameters; None keeps the files'.
        device: Where they are put.
        member: For a published folder, see `hf_map.model_config`.
        template: Likewise.

    Raises:
        CheckpointError: The folder is incomplete, damaged, or its weights are another model's.
    """
    card = published_card(folder, member, template) if is_published(folder) else read_card(folder)
    with without_parameters():
        model = build_model(card.model)
    load_weights(model, folder, dtype=dtype, device=device)
    return model.to(device).eval(), card


def load_weights(
    model: Generator, folder: Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> None:
    """Load the weights of a folder strictly, one tensor at a time.

    Parameters that have no memory yet take the file's dtype, or `dtype`, on `device`; others keep their own.

    Raises:
        CheckpointError: Missing or damaged files; another architecture, template or number of codebooks; missing,
            unexpected or misshapen tensors, all listed.
    """
    if (folder / CARD_FILE).is_file():
        _check_fits(folder, read_card(folder).model, model.config)
    load_tensors(model, open_weights(folder), dtype=dtype, device=device)


def _checked_card(content: dict[str, Any], path: Path) -> ModelCard:
    if content.get("format_version") not in _READABLE_VERSIONS:
        raise CheckpointError(
            f"{path}: format version {content.get('format_version')}, this program reads "
            f"{' and '.join(str(version) for version in _READABLE_VERSIONS)}; use the version of moss that wrote it"
        )
    architecture = content.get("architecture")
    if architecture not in ModelConfig.variants:
        raise CheckpointError(
            f"{path}: architecture {architecture!r} is not a generator; expected one of "
            f"{', '.join(ModelConfig.variants)}; choose the folder of a generator"
        )
    model = build(ModelConfig, content["model"])
    template, own = content["template"], TEMPLATES[model.template]
    if (template["name"], template["hash"]) != (own.name.value, own.hash):
        raise CheckpointError(
            f"{path}: trained with prompt template {template['name']} ({template['hash']}), this program has "
            f"{own.name.value} ({own.hash}); use the version of moss that trained it"
        )
    counted = content.get("num_codebooks", model.num_codebooks)
    if counted != model.num_codebooks:
        raise CheckpointError(
            f"{path}: trained with {counted} codebooks, but its settings say num_codebooks={model.num_codebooks}; "
            "restore the file, or export the checkpoint again"
        )
    text = dict(content["text_tokenizer"])
    fingerprint = text.pop("fingerprint")
    text_tokenizer = build(TextTokenizerConfig, text)
    if text_tokenizer.path is not None and (path.parent / text_tokenizer.path).is_file():
        text_tokenizer = replace(text_tokenizer, path=path.parent / text_tokenizer.path)
    return ModelCard(
        model=model,
        text_tokenizer=text_tokenizer,
        text_fingerprint=fingerprint,
        tokenizer=content["tokenizer"],
        tokenizer_config=content["tokenizer_config"],
        step=content["step"],
    )


def _check_fits(folder: Path, theirs: ModelConfig, ours: ModelConfig) -> None:
    for name in ("architecture", "template", "num_codebooks"):
        there, here = (to_plain(getattr(config, name)) for config in (theirs, ours))
        if there != here:
            raise CheckpointError(
                f"{folder}: the checkpoint's {name} is {there}, the model's {here}; set model.{name}={there} or choose "
                "another checkpoint"
            )


__all__ = [
    "CARD_FILE",
    "LAYOUT_FILE",
    "PUBLISHED_FOLDER",
    "TOKENIZER_FILE",
    "WEIGHTS_FILE",
    "ModelCard",
    "carry_published",
    "is_published",
    "load_generator",
    "load_weights",
    "published_card",
    "read_card",
    "save_generator",
    "save_weights",
    "unfinished",
]
