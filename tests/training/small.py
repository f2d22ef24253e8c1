"""One small model of each architecture: as a section for networks alone, as command-line words for whole runs."""

from pathlib import Path

from moss.config.compose import load_config
from moss.config.model import (
    DelayModelConfig,
    LocalModelConfig,
    LocalV15ModelConfig,
    ModelConfig,
    RealtimeModelConfig,
)
from moss.config.train import TrainConfig
from tests.model.toys import AUDIO_IDS, DELAY_IDS, GEOMETRY
from tests.tiny import tiny_overrides

_LOCAL = {"depth_hidden_size": 24, "depth_num_layers": 2, "depth_intermediate_size": 40, "depth_mlp_size": 20}
_V15 = {"depth_num_layers": 1, "depth_num_heads": 4, "depth_intermediate_size": 40}
_REALTIME = {
    "depth_num_layers": 2,
    "depth_num_heads": 2,
    "depth_num_kv_heads": 1,
    "depth_head_dim": 16,
    "depth_intermediate_size": 40,
}

CONFIGS: dict[str, ModelConfig] = {
    "delay": DelayModelConfig(**GEOMETRY, **DELAY_IDS),
    "local": LocalModelConfig(**GEOMETRY, **DELAY_IDS, **_LOCAL),  # type: ignore[arg-type]
    "local_v15": LocalV15ModelConfig(**GEOMETRY, **AUDIO_IDS, audio_assistant_slot_token_id=36, **_V15),  # type: ignore[arg-type]
    "realtime": RealtimeModelConfig(
        **GEOMETRY,
        reference_audio_pad_token_id=35,
        text_pad_token_id=36,
        **_REALTIME,  # type: ignore[arg-type]
    ),
}
"""Models of a few ten thousand parameters, three codebooks of ten."""

ARCHITECTURES = tuple(CONFIGS)
DEPTH = ARCHITECTURES[1:]

_SECTIONS: dict[str, dict[str, object]] = {"delay": {}, "local": _LOCAL, "local_v15": _V15, "realtime": _REALTIME}


def small_overrides(architecture: str, shards: Path, runs: Path, **extra: object) -> list[str]:
    """Command-line words of a run that takes a second; see `tests.tiny.tiny_overrides`."""
    depth = {f"model__{name}": value for name, value in _SECTIONS[architecture].items()}
    # Realtime's system block alone is longer than the others' rows.
    room: dict[str, object] = {"data__positions_per_micro_batch": 384} if architecture == "realtime" else {}
    return [f"model={architecture}_xs", *tiny_overrides(shards, runs, **{**depth, **room, **extra})]


def small_config(architecture: str, shards: Path, runs: Path, **extra: object) -> TrainConfig:
    """The same as a configuration."""
    return load_config(TrainConfig, "train", small_overrides(architecture, shards, runs, **extra))
