"""What a published folder holds beside config.json's settings and the weights: constants, and files for its processor.

Source: MOSS-TTS moss_tts_*/finetuning/sft.py (lists of files) and moss_tts_*/configuration_*.py @58b20a0.
"""

import gzip
import json
import logging
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moss.config.model import LocalV15ModelConfig, ModelConfig, RealtimeModelConfig, TextTokenizerConfig
from moss.errors import CheckpointError
from moss.model.exported_tokenizer import tokenizer_json
from moss.model.safetensors_files import INDEX_FILE, PICKLE_SUFFIXES, StoredWeights
from moss.spec import SPECIAL_TOKEN_STRINGS

logger = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.json"
PUBLISHED_FOLDER, LAYOUT_FILE = "published", "published_layout.json"
"""What an imported checkpoint keeps of its published folder: the files beside the weights; how those lay in files."""
_COMMON_SCRIPTS = ("__init__.py", "configuration_moss_tts.py", "modeling_moss_tts.py", "processing_moss_tts.py")
_NOT_FILES_OF_THE_MODEL = {".git", ".cache"}
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class PublishedKind:
    """How one architecture is published.

    Attributes:
        model_type: In config.json.
        scripts_folder: Where a checkout of the published code keeps the scripts.
        scripts: The Python files that its loading code reads from the checkpoint folder.
        inside: Subfolder of the checkpoint folder that they lie in; empty for the folder itself.
        config_class: Module and class, as `auto_map` spells it.
        model_class: Likewise.
        processor_class: Likewise.
    """

    model_type: str
    scripts_folder: str
    scripts: tuple[str, ...]
    config_class: str
    model_class: str
    processor_class: str
    inside: str = ""


_DELAY = PublishedKind(
    model_type="moss_tts_delay",
    scripts_folder="moss_tts_delay",
    scripts=(*_COMMON_SCRIPTS, "inference_utils.py", "tts_robust_normalizer_single_script.py"),
    config_class="configuration_moss_tts.MossTTSDelayConfig",
    model_class="modeling_moss_tts.MossTTSDelayModel",
    processor_class="processing_moss_tts.MossTTSDelayProcessor",
)
KINDS = {
    "delay": _DELAY,
    "local": PublishedKind(
        model_type="moss_tts_delay",
        scripts_folder="moss_tts_local",
        scripts=(*_COMMON_SCRIPTS, "inference_utils.py"),
        config_class=_DELAY.config_class,
        model_class=_DELAY.model_class,
        processor_class=_DELAY.processor_class,
    ),
    "local_v15": PublishedKind(
        model_type="moss_tts_local",
        scripts_folder="moss_tts_local_v1.5",
        scripts=(*_COMMON_SCRIPTS, "gpt2_decoder.py", "qwen3_decoder.py"),
        config_class="configuration_moss_tts.MossTTSLocalConfig",
        model_class="modeling_moss_tts.MossTTSLocalModel",
        processor_class="processing_moss_tts.MossTTSLocalProcessor",
    ),
    "realtime": PublishedKind(
        model_type="moss_tts_realtime",
        scripts_folder="moss_tts_realtime/mossttsrealtime",
        scripts=(
            "__init__.py",
            "configuration_mossttsrealtime.py",
            "modeling_mossttsrealtime.py",
            "modeling_mossttsrealtime_local.py",
            "processing_mossttsrealtime.py",
            "streaming_mossttsrealtime.py",
        ),
        config_class="mossttsrealtime.configuration_mossttsrealtime.MossTTSRealtimeConfig",
        model_class="mossttsrealtime.modeling_mossttsrealtime.MossTTSRealtime",
        processor_class="mossttsrealtime.processing_mossttsrealtime.MossTTSRealtimeProcessor",
        inside="mossttsrealtime",
    ),
}


def published_skeleton(config: ModelConfig, sampling_rate_hz: int | None = None) -> dict[str, Any]:
    """The constants of a published config.json; `hf_map.published_config` adds the settings.

    Args:
        config: Ours.
        sampling_rate_hz: Of the audio tokenizer; the published one of the architecture if None.
    """
    kind = KINDS[config.architecture]
    language = {
        "model_type": "qwen3",
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "initializer_range": config.initializer_range,
        "rope_parameters": {"rope_type": "default"},
    }
    made: dict[str, Any] = {
        "architectures": [kind.model_class.rpartition(".")[2]],
        "auto_map": {"AutoConfig": kind.config_class, "AutoModel": kind.model_class},
        "model_type": kind.model_type,
        "language_config": language,
    }
    if isinstance(config, RealtimeModelConfig):
        made["audio_pad_token"] = config.codebook_size
        made["local_config"] = {
            "model_type": "moss_tts_realtime_local_transformer",
            "hidden_size": config.hidden_size,
            "rms_norm_eps": config.rms_norm_eps,
            "hidden_act": "silu",
            "attention_bias": False,
            "max_position_embeddings": 2 * config.num_codebooks + 1,
            "pad_token_id": config.codebook_size,
            "audio_pad_token": config.codebook_size,
            "rope_parameters": {"rope_type": "linear", "factor": 1.0},
        }
        return made
    made |= {"audio_pad_code": config.codebook_size, "sampling_rate": sampling_rate_hz or 24_000}
    if isinstance(config, LocalV15ModelConfig):
        made |= {"sampling_rate": sampling_rate_hz or 48_000, "tie_word_embeddings": True}
        made |= {"audio_pad_token_id": config.codebook_size, "qwen3_config": json.loads(json.dumps(language))}
        made["audio_codebook_sizes"] = [config.codebook_size] * config.num_codebooks
        made["gpt2_config"] = {
            "model_type": "gpt2",
            "vocab_size": config.vocab_size,
            "n_positions": config.num_codebooks + 1,
            "n_ctx": config.num_codebooks + 1,
            "scale_attn_weights": True,
            **{name: 0.0 for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")},
        }
    return made


def keep_published(source: Path, target: Path, weights: StoredWeights) -> None:
    """Copy into a checkpoint of ours what an export needs to give a published folder back.

    Args:
        source: The published folder.
        target: Ours.
        weights: Of the source.
    """
    used = {INDEX_FILE, *(file.path.name for file in weights.files)}
    for path in sorted(source.iterdir()):
        if _is_of_weights(path.relative_to(source)) and path.name not in used:
            logger.warning("%s: is not part of the model and is left out", path)
    copy_files(source, target / PUBLISHED_FOLDER, files_beside_weights(source))
    (target / LAYOUT_FILE).write_text(json.dumps(layout_of(weights)) + "\n", encoding="utf-8")


def layout_of(weights: StoredWeights) -> dict[str, Any]:
    """How tensors lie in files: names and headers, and the index as it is written."""
    files = [{"name": file.path.name, "header": file.header} for file in weights.files]
    return {"index": weights.index, "files": files}


def files_beside_weights(folder: Path) -> list[Path]:
    """Files of a published folder, relative to it, without weights and what a version control put there."""
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [name for name in names if name.parts[0] not in _NOT_FILES_OF_THE_MODEL and not _is_of_weights(name)]


def copy_files(source: Path, target: Path, names: Iterable[Path]) -> None:
    """Copy files, unread, with the folders that they lie in."""
    target.mkdir(exist_ok=True)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def write_tokenizer_files(folder: Path, config: ModelConfig, text_tokenizer: TextTokenizerConfig) -> None:
    """Write the files that the published processors read their text tokenizer from.

    Args:
        folder: The exported folder.
        config: For the control tokens and the position limit.
        text_tokenizer: See `tokenizer_json`; where the model's ids are not its, there is nothing to write.
    """
    processor = KINDS[config.architecture].processor_class
    words = {"processor_class": processor.rpartition(".")[2], "auto_map": {"AutoProcessor": processor}}
    _write_json(folder / "processor_config.json", words)
    content = tokenizer_json(text_tokenizer, config)
    if content is None:
        return
    (folder / TOKENIZER_FILE).write_bytes(content.encode("utf-8"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_positions,
        "pad_token": SPECIAL_TOKEN_STRINGS["pad"],
        "chat_template": _CHAT_TEMPLATE,
    }
    _write_json(folder / "tokenizer_config.json", settings)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a `tokenizer.json`; one that is gzipped comes out plain."""
    content = source.read_bytes()
    target.write_bytes(gzip.decompress(content) if source.suffix == ".gz" else content)


def copy_support(checkout: Path, folder: Path, architecture: str) -> None:
    """Copy the published Python files, unread, from a checkout of the published code.

    Args:
        checkout: The checkout, or the folder in it that holds the files.
        folder: The exported folder; files that it has already are kept.
        architecture: Ours.

    Raises:
        CheckpointError: The checkout has none of them.
    """
    kind = KINDS[architecture]
    places = [place for place in (checkout / kind.scripts_folder, checkout) if (place / kind.scripts[1]).is_file()]
    if not places:
        raise CheckpointError(
            f"{checkout}: no {kind.scripts_folder}/{kind.scripts[1]}; give a checkout of the published MOSS-TTS code"
        )
    target = folder / kind.inside
    target.mkdir(exist_ok=True)
    for name in kind.scripts:
        if (places[0] / name).is_file() and not (target / name).exists():
            shutil.copyfile(places[0] / name, target / name)


def missing_files(folder: Path, architecture: str) -> list[str]:
    """Files that the published processors and loaders need and an exported folder lacks."""
    kind = KINDS[architecture]
    # An empty __init__.py is not published everywhere, and nothing fails without it.
    scripts = [str(Path(kind.inside) / name) for name in kind.scripts if name != "__init__.py"]
    wanted: Sequence[str] = [TOKENIZER_FILE, "tokenizer_config.json", "processor_config.json", *scripts]
    return [name for name in wanted if not (folder / name).is_file()]


def _is_of_weights(name: Path) -> bool:
    return len(name.parts) == 1 and (name.name == INDEX_FILE or name.suffix in (".safetensors", *PICKLE_SUFFIXES))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
