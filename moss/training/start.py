"""What a run takes over from the checkpoint that it starts from: settings that shapes do not show, published files."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from moss.config.model import ModelConfig, TextTokenizerConfig
from moss.config.schema import to_plain
from moss.config.train import TrainConfig
from moss.data.text_tokenizer import build_text_tokenizer
from moss.errors import CheckpointError
from moss.model.checkpoint import (
    CARD_FILE,
    LAYOUT_FILE,
    PUBLISHED_FOLDER,
    ModelCard,
    carry_published,
    is_published,
    published_card,
    read_card,
)
from moss.model.exported_tokenizer import tokenizer_json
from moss.model.tensor_loading import expected_shapes

logger = logging.getLogger(__name__)

_OWN = {"init_from", "member", "template", "unverified", "initializer_range", "max_positions"}
"""Settings that the run decides; the template is compared by itself."""


def with_checkpoint_settings(config: TrainConfig) -> TrainConfig:
    """The configuration with the model settings of the checkpoint in `model.init_from`, which always win.

    Fields that change no tensor's shape are taken over, each with a line in the log. A folder of weights without a
    description changes nothing: its tensors must still fit by name and shape.

    Raises:
        CheckpointError: The checkpoint cannot be read, or was trained for other codes, another prompt, other text ids
            or another geometry.
    """
    folder = config.model.init_from
    card = None if folder is None else _card_of(folder, config.model)
    if folder is None or card is None:
        return config
    for what in ("architecture", "template"):
        _refuse(folder, [(what, *(to_plain(getattr(model, what)) for model in (card.model, config.model)))])
    theirs, ours = to_plain(card.model), to_plain(config.model)
    differing = [name for name in ours if name not in _OWN and theirs[name] != ours[name]]
    _refuse_text_tokenizer(folder, card, config)
    shapes = expected_shapes(config.model)
    changes: dict[str, Any] = {name: getattr(card.model, name) for name in differing}
    shaped = [name for name in differing if expected_shapes(_changed(config.model, {name: changes[name]})) != shapes]
    _refuse(folder, [(name, theirs[name], ours[name]) for name in shaped])
    for name in differing:
        logger.info("model.%s=%s: taken from %s in place of %s", name, theirs[name], folder, ours[name])
    return dataclasses.replace(config, model=_changed(config.model, changes))


def keep_published_files(source: Path, folder: Path) -> None:
    """Keep in a run folder what exporting the model needs, if the run starts from a published folder or one's import.

    Args:
        source: The checkpoint that the run starts from; the run does not need it again for its own checkpoints.
        folder: The run's.

    Raises:
        CheckpointError: They cannot be copied.
    """
    try:
        shutil.rmtree(folder / PUBLISHED_FOLDER, ignore_errors=True)
        (folder / LAYOUT_FILE).unlink(missing_ok=True)
        carry_published(source, folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: the files of {source} could not be copied ({error.strerror or error}); free some space and "
            "start again"
        ) from error


def _card_of(folder: Path, model: ModelConfig) -> ModelCard | None:
    if is_published(folder):
        return published_card(folder, model.member, model.template)
    return read_card(folder) if (folder / CARD_FILE).is_file() else None


def _changed(model: ModelConfig, changes: dict[str, Any]) -> ModelConfig:
    return dataclasses.replace(model, **changes)


def _refuse(folder: Path, differing: list[tuple[str, Any, Any]]) -> None:
    differing = [(what, theirs, ours) for what, theirs, ours in differing if theirs != ours]
    if differing:
        words = "; ".join(f"{what} {theirs}, this run {ours}" for what, theirs, ours in differing)
        raise CheckpointError(f"model.init_from={folder}: has {words}; choose the same, or other weights")


def _refuse_text_tokenizer(folder: Path, card: ModelCard, config: TrainConfig) -> None:
    """Refuse other text ids. Where the checkpoint has a file, its control tokens do not count: config.json has them."""
    theirs, path = card.text_fingerprint, card.text_tokenizer.path
    ours = build_text_tokenizer(config.text_tokenizer).fingerprint
    if theirs in (None, ours):
        return
    if path is not None and path.is_file():
        if _of_texts(card.text_tokenizer, card.model) == _of_texts(config.text_tokenizer, card.model):
            return
        raise CheckpointError(
            f"model.init_from={folder}: has text tokenizer {theirs}, this run {ours}; choose the same with "
            f"text_tokenizer.kind=file text_tokenizer.path={path}, or other weights"
        )
    _refuse(folder, [("text tokenizer", theirs, ours)])


def _of_texts(text_tokenizer: TextTokenizerConfig, model: ModelConfig) -> Any:
    """What of a tokenizer.json decides the ids of a plain text; as it is where that cannot be told."""
    content = tokenizer_json(text_tokenizer, model)
    try:
        parsed = json.loads(content or "")
        return {name: value for name, value in parsed.items() if name != "added_tokens"}
    except (ValueError, AttributeError):
        return content
