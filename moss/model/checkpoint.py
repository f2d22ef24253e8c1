"""A generator on disk: a folder with `model.safetensors` and `moss.json`.

`moss.json` says everything that using the weights needs: geometry, text tokenizer, audio tokenizer, prompt template.
A folder that names another architecture, template or tokenizer is refused by name; nothing in it is executed.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moss.config.model import ModelConfig, TextTokenizerConfig
from moss.config.schema import build, to_plain
from moss.errors import CheckpointError, ConfigError
from moss.model.build import build_model
from moss.model.delay import DelayModel
from moss.sequence.prompt import TEMPLATE_HASH, TEMPLATE_NAME

FORMAT_VERSION = 1
WEIGHTS_FILE, CARD_FILE = "model.safetensors", "moss.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What `moss.json` holds.

    Attributes:
        model: Geometry.
        text_tokenizer: Which BPE, and `text_fingerprint` its hash.
        tokenizer: The audio tokenizer's card: name, fingerprint, rates, codebooks.
        tokenizer_config: Settings that rebuild the audio tokenizer.
        step: Optimizer steps trained.
    """

    model: ModelConfig
    text_tokenizer: TextTokenizerConfig
    text_fingerprint: str
    tokenizer: dict[str, Any]
    tokenizer_config: dict[str, Any]
    step: int

    def to_json(self) -> str:
        """The file's content."""
        content = {
            "format_version": FORMAT_VERSION,
            "architecture": self.model.architecture,
            "template": {"name": TEMPLATE_NAME, "hash": TEMPLATE_HASH},
            "model": to_plain(self.model),
            "text_tokenizer": {**to_plain(self.text_tokenizer), "fingerprint": self.text_fingerprint},
            "tokenizer": self.tokenizer,
            "tokenizer_config": self.tokenizer_config,
            "step": self.step,
        }
        return json.dumps(content, indent=2, sort_keys=True) + "\n"


def save_weights(state: dict[str, Tensor], folder: Path) -> None:
    """Write `model.safetensors`; the caller makes the folder appear at once by renaming it."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, folder / WEIGHTS_FILE)


def read_card(folder: Path) -> ModelCard:
    """Read and check `moss.json`.

    Raises:
        CheckpointError: Not a generator's folder, another format or prompt template, or settings that do not fit.
    """
    path = folder / CARD_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no {CARD_FILE}, so this is not a checkpoint folder") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    try:
        return _checked_card(content, path)
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{path}: damaged or of another program ({error})") from error


def _checked_card(content: dict[str, Any], path: Path) -> ModelCard:
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {content.get('format_version')}, this program reads {FORMAT_VERSION}"
        )
    architecture = content.get("architecture")
    if architecture not in ModelConfig.variants:
        raise CheckpointError(
            f"{path}: architecture {architecture!r} is not a generator; expected one of "
            f"{', '.join(ModelConfig.variants)}"
        )
    template = content["template"]
    if template["hash"] != TEMPLATE_HASH:
        raise CheckpointError(
            f"{path}: trained with prompt template {template['name']} ({template['hash']}), this program has "
            f"{TEMPLATE_NAME} ({TEMPLATE_HASH}); use the version of moss that trained it"
        )
    text = dict(content["text_tokenizer"])
    fingerprint = text.pop("fingerprint")
    return ModelCard(
        model=build(ModelConfig, content["model"]),
        text_tokenizer=build(TextTokenizerConfig, text),
        text_fingerprint=fingerprint,
        tokenizer=content["tokenizer"],
        tokenizer_config=content["tokenizer_config"],
        step=content["step"],
    )


def load_generator(folder: Path) -> tuple[DelayModel, ModelCard]:
    """Build the model of a checkpoint folder and load its weights, in eval mode.

    Raises:
        CheckpointError: The folder is incomplete, damaged, or its weights are another model's.
    """
    card = read_card(folder)
    model = build_model(card.model)
    load_weights(model, folder)
    return model.eval(), card


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load `model.safetensors` strictly.

    Raises:
        CheckpointError: Missing or truncated file; missing, unexpected or misshapen tensors, all listed.
    """
    path = folder / WEIGHTS_FILE
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no {WEIGHTS_FILE}; the checkpoint is incomplete") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
    own = model.state_dict()
    problems = [f"missing {name}" for name in sorted(own.keys() - state.keys())]
    problems += [f"unexpected {name}" for name in sorted(state.keys() - own.keys())]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, the model {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if own[name].shape != state[name].shape
    ]
    if problems:
        raise CheckpointError(f"{path}: weights of another model:\n  " + "\n  ".join(problems))
    model.load_state_dict(state)
