"""From a folder to a `SpeechModel`: our checkpoints and runs, and published folders."""

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from moss.config.generation import Attention, Offload
from moss.config.load_tokenizer import load_tokenizer_config
from moss.config.model import Member, Template, TextTokenizerConfig, TextTokenizerKind
from moss.config.schema import build
from moss.config.tokenizer import TokenizerConfig
from moss.data.text_tokenizer import TextTokenizer, build_text_tokenizer
from moss.errors import CheckpointError, GenerationError
from moss.generation.presets import preset, with_overrides
from moss.generation.speech_model import SpeechModel
from moss.model.checkpoint import CARD_FILE, TOKENIZER_FILE, ModelCard, is_published, load_generator
from moss.model.decoder import choose_attention
from moss.model.hf_map import CONFIG_FILE, architecture_of, read_config
from moss.model.interface import Generator
from moss.sequence.layout import build_layout
from moss.tokenizer.build import build_tokenizer, device_problem
from moss.tokenizer.interface import AudioTokenizer

logger = logging.getLogger(__name__)

E = TypeVar("E", Member, Template, Attention, Offload)

_SHARED_CODEBOOKS = 16
"""Of MOSS-TTSD, VoiceGenerator and SoundEffect alike."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_speech_model(
    path: Path | str,
    *,
    tokenizer: AudioTokenizer | Path | str | None = None,
    text_tokenizer: Path | str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    attention: str = "auto",
    offload: str = "none",
    member: str | None = None,
    template: str | None = None,
) -> SpeechModel:
    """Load a generator; `moss.load` is this function and describes the arguments.

    Raises:
        CheckpointError: No checkpoint, a damaged one, tokenizers other than those it was trained with, or a published
            Delay folder of 16 codebooks without `member`.
        GenerationError: The device, dtype or attention cannot be used, or an unknown member or template.
    """
    folder = newest_checkpoint(Path(path))
    target = usable_device(device)
    chosen_dtype = _dtype(dtype, target)
    kinds = _choice(Member, "member", member), _choice(Template, "template", template)
    is_offloaded = _choice(Offload, "offload", offload) is Offload.cpu
    wanted_attention = _choice(Attention, "attention", attention) or Attention.auto
    chosen_attention = choose_attention(wanted_attention, target, chosen_dtype)
    _check_member(folder, kinds[0])
    place = torch.device("cpu") if is_offloaded else target
    model, card = load_generator(folder, dtype=chosen_dtype, device=place, member=kinds[0], template=kinds[1])
    card = _as_wanted(model, card, folder, *kinds)
    text, card = _text_tokenizer(folder, card, text_tokenizer)
    audio = _audio_tokenizer(folder, card, tokenizer, target)
    if is_offloaded:
        move_all_but_layers(model, target)
    model.fuse_()
    # Scripts seldom configure logging, and what was chosen decides speed and sound.
    sys.stderr.write(
        f"moss: {_title(folder)} {card.model.architecture} on {target}, {str(chosen_dtype).removeprefix('torch.')}, "
        f"attention {chosen_attention.value}, offload {offload}, member {card.model.member.value}, "
        f"audio tokenizer {'none (codes only)' if audio is None else audio.fingerprint}\n"
    )
    config = with_overrides(preset(model.config), model.config, attention=attention, offload=offload)
    layout = build_layout(model.config, text.encode)
    return SpeechModel(model, layout, card, tokenizer=audio, config=config, folder=folder)


def newest_checkpoint(path: Path) -> Path:
    """The checkpoint folder meant by a path: itself, or the newest one of a run folder.

    Raises:
        CheckpointError: There is none.
    """
    if (path / CARD_FILE).is_file() or (path / CONFIG_FILE).is_file():
        return path
    candidates = sorted((path / "checkpoints").glob("step-*"))
    if not candidates:
        raise CheckpointError(
            f"{path}: neither a checkpoint nor a run folder with checkpoints; a checkpoint has {CARD_FILE}, a "
            f"published one {CONFIG_FILE}"
        )
    return candidates[-1]


def usable_device(device: torch.device | str) -> torch.device:
    """The device, if tensors can be put there.

    Raises:
        GenerationError: It does not exist here.
    """
    problem = device_problem(device)
    if problem:
        raise GenerationError(f"device {str(device)!r} cannot be used: {problem}")
    return torch.device(device)


def move_all_but_layers(model: Generator, device: torch.device) -> None:
    """Put everything on a device except the backbone's layers, which stay where they are."""
    layers = model.backbone.layers
    model.backbone.layers = torch.nn.ModuleList()
    try:
        model.to(device)
    finally:
        model.backbone.layers = layers


def _title(folder: Path) -> str:
    """A checkpoint by its folder's name; one of a run also by the run's."""
    path = folder.resolve()
    return f"{path.parent.parent.name}/{path.name}" if path.parent.name == "checkpoints" else path.name


def _check_member(folder: Path, member: Member | None) -> None:
    """Refuse to guess what a published checkpoint was trained to do where several have its shape.

    Raises:
        CheckpointError: Lists the choices.
    """
    if member is not None or not is_published(folder):
        return
    published, _ = read_config(folder)
    if published.get("n_vq") == _SHARED_CODEBOOKS and architecture_of(published) == "delay":
        raise CheckpointError(
            f"{folder}: a published Delay checkpoint of {_SHARED_CODEBOOKS} codebooks may be any of several "
            "members, its files do not say which, and with another one's prompt it speaks gibberish; give "
            'member="ttsd" | "voice_generator" | "sound_effect" | "tts"'
        )


def _as_wanted(
    model: Generator, card: ModelCard, folder: Path, member: Member | None, template: Template | None
) -> ModelCard:
    """The card with the member that the caller names; a template is what the weights learnt and stays.

    Raises:
        CheckpointError: Another template.
    """
    if template is not None and template is not card.model.template:
        raise CheckpointError(
            f"{folder}: trained with prompt template {card.model.template.value}, {template.value} is asked for; a "
            "model speaks gibberish with another template than its own, leave `template` out"
        )
    if member is not None and member is not card.model.member:
        logger.warning("%s: trained as %s, used as %s", folder, card.model.member.value, member.value)
        model.config = replace(card.model, member=member)
        card = replace(card, model=model.config)
    return card


def _text_tokenizer(folder: Path, card: ModelCard, wanted: Path | str | None) -> tuple[TextTokenizer, ModelCard]:
    """The BPE that the checkpoint was trained with, or the one given, and the card that says so."""
    config = card.text_tokenizer
    if wanted is not None:
        is_kind = wanted in (TextTokenizerKind.qwen.value, TextTokenizerKind.compact.value)
        path = Path(wanted)
        if path.is_dir():
            path = path / TOKENIZER_FILE
        values = {"kind": str(wanted)} if is_kind else {"kind": "file", "path": str(path)}
        config = build(TextTokenizerConfig, values)
    made = build_text_tokenizer(config)
    if card.text_fingerprint not in (None, made.fingerprint):
        raise CheckpointError(
            f"{folder}: trained with text tokenizer {card.text_fingerprint}, this program has {made.fingerprint}; give "
            f"the model's own {TOKENIZER_FILE} as `text_tokenizer=`, or leave it out if you gave another one"
        )
    if made.vocab_size > card.model.vocab_size and config.kind is not TextTokenizerKind.qwen:
        raise CheckpointError(
            f"{folder}: the text table has {card.model.vocab_size} rows, the text tokenizer {made.vocab_size} ids; "
            "give the model's own as `text_tokenizer=`"
        )
    return made, replace(card, text_tokenizer=config, text_fingerprint=made.fingerprint)


def _audio_tokenizer(
    folder: Path, card: ModelCard, wanted: AudioTokenizer | Path | str | None, device: torch.device
) -> AudioTokenizer | None:
    """The tokenizer given, or that of the card; None if there is neither.

    Raises:
        CheckpointError: Not the one whose codes the model learnt.
    """
    if isinstance(wanted, str | Path):
        made: AudioTokenizer = build_tokenizer(load_tokenizer_config(str(wanted)), device)
    elif wanted is not None:
        made = wanted
    elif card.tokenizer_config is not None:
        made = build_tokenizer(build(TokenizerConfig, card.tokenizer_config), device)
    else:
        logger.warning("%s: says no audio tokenizer, so only codes can be made; give `tokenizer=` for audio", folder)
        return None
    if card.tokenizer is not None and made.fingerprint != card.tokenizer["fingerprint"]:
        raise CheckpointError(
            f"{folder}: trained on codes of tokenizer {card.tokenizer['fingerprint']}, "
            f"{card.tokenizer['name']} is {made.fingerprint} here; encode and train again, or restore the weights"
        )
    spec = made.spec
    if spec.codebook_size != card.model.codebook_size or spec.num_codebooks < card.model.num_codebooks:
        raise CheckpointError(
            f"{folder}: speaks {card.model.num_codebooks} codebooks of {card.model.codebook_size} entries, the audio "
            f"tokenizer has {spec.num_codebooks} of {spec.codebook_size}; give the one that it was trained with"
        )
    return made


def _dtype(wanted: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    if wanted is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    name = str(wanted).removeprefix("torch.")
    if name not in _DTYPES:
        raise GenerationError(f"dtype {name!r}: expected one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _choice(kind: type[E], name: str, value: str | None) -> E | None:
    """The member of an enumeration, None for None."""
    if value is None:
        return None
    known = [entry.value for entry in kind]
    if value not in known:
        raise GenerationError(f"{name}={value!r}: expected one of {', '.join(known)}")
    return kind(value)
