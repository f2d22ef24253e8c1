"""Run the published tokenizer from an unmodified checkout of OpenMOSS/MOSS-Audio-Tokenizer.

Nothing of the checkout is changed, and nothing in it is part of this project.
"""

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moss.config.tokenizer import CatConfig, CatStage, PatchStage, TransformerStage
from moss.errors import ConfigError

MODELING = "modeling_moss_audio_tokenizer"
PACKAGE = "published_tokenizer"
"""Name under which the checkout's folder is imported: its modules import each other as parts of a package."""


def check_checkout(checkout: Path) -> None:
    """Refuse a folder without the model.

    Raises:
        ConfigError: It is no checkout of OpenMOSS/MOSS-Audio-Tokenizer.
    """
    if not (checkout / f"{MODELING}.py").is_file():
        raise ConfigError(
            f"{checkout} has no {MODELING}.py; give the folder of a checkout of OpenMOSS/MOSS-Audio-Tokenizer"
        )


def reference_tokenizer(checkout: Path, config: CatConfig, state: dict[str, Tensor]) -> Any:
    """The published MossAudioTokenizerModel with our geometry and weights, in eval mode."""
    modeling = _module(checkout)
    model = modeling.MossAudioTokenizerModel(modeling.MossAudioTokenizerConfig(**published_settings(config)))
    model.load_state_dict(state)
    return model.eval()


def published_settings(config: CatConfig) -> dict[str, Any]:
    """Our geometry in the names of the published `config.json`.

    Raises:
        ConfigError: The stages have windows of several lengths, which the 24 kHz code has not.
    """
    decoder = config.decoder_stages()
    windows = {stage.context_s for stage in [*config.encoder, *decoder] if isinstance(stage, TransformerStage)}
    if len(windows) != 1:
        raise ConfigError(f"tokenizer: the published code has one window for all stages, got {sorted(windows)} s")
    quantizer = config.quantizer
    return {
        "sampling_rate": config.sampling_rate_hz,
        "downsample_rate": config.samples_per_frame,
        "causal_transformer_context_duration": windows.pop(),
        "encoder_kwargs": [_published_stage(stage) for stage in config.encoder],
        "decoder_kwargs": [_published_stage(stage) for stage in decoder],
        "quantizer_kwargs": {
            "input_dim": quantizer.input_size,
            "rvq_dim": quantizer.residual_size,
            "output_dim": quantizer.output_size,
            "num_quantizers": quantizer.num_codebooks,
            "codebook_size": quantizer.codebook_size,
            "codebook_dim": quantizer.code_size,
            "quantizer_type": "rlfq",
        },
    }


def encode(model: Any, waves: list[Tensor]) -> list[Tensor]:
    """Codes (frames, codebooks) of each waveform by the published batch interface, which pads all to the longest."""
    result = model.batch_encode(waves)
    lengths = result.audio_codes_lengths.tolist()
    return [result.audio_codes[:, i, :length].T for i, length in enumerate(lengths)]


def encode_stream(model: Any, wave: Tensor, chunk_s: float) -> Tensor:
    """Codes (frames, codebooks) by the published streaming encoder, chunk after chunk."""
    codes: Tensor = model.encode(wave[None, None], chunk_duration=chunk_s, return_dict=True).audio_codes
    return codes[:, 0].T


def decode(model: Any, codes: Tensor) -> Tensor:
    """Samples (n,) of codes (frames, codebooks)."""
    audio: Tensor = model.batch_decode([codes.T]).audio
    return audio[0, 0]


def decode_stream(model: Any, codes: Tensor, chunk_s: float) -> Tensor:
    """Samples (n,) of codes (frames, codebooks) by the published streaming decoder, chunk after chunk."""
    audio: Tensor = model.decode(codes.T[:, None], chunk_duration=chunk_s, return_dict=True).audio
    return audio[0, 0]


def quantize(model: Any, hidden_BTD: Tensor) -> Tensor:
    """Codes (B, T, codebooks) of encoder outputs by the published quantizer."""
    lengths = torch.full((len(hidden_BTD),), hidden_BTD.shape[1])
    codes: Tensor = model.quantizer(hidden_BTD.transpose(1, 2), lengths)[1]
    return codes.permute(1, 2, 0)


def dequantize(model: Any, codes_BTK: Tensor) -> Tensor:
    """Decoder inputs (B, T, width) of codes by the published quantizer."""
    hidden: Tensor = model.quantizer.decode_codes(codes_BTK.permute(2, 0, 1))
    return hidden.transpose(1, 2)


def _published_stage(stage: CatStage) -> dict[str, Any]:
    if isinstance(stage, PatchStage):
        return {"module_type": "PatchedPretransform", "patch_size": stage.patch_size}
    assert isinstance(stage, TransformerStage)
    return {
        "module_type": "Transformer",
        "input_dimension": stage.input_size,
        "output_dimension": stage.output_size,
        "d_model": stage.hidden_size,
        "num_heads": stage.num_heads,
        "num_layers": stage.num_layers,
        "dim_feedforward": stage.intermediate_size,
        "max_period": stage.rope_theta,
        "layer_scale": stage.layer_scale_init,
        "causal": True,
        "norm": "layer_norm",
        "positional_embedding": "rope",
        "gating": "none",
        "conv_layout": True,
    }


def _module(checkout: Path) -> Any:
    sys.dont_write_bytecode = True
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(checkout)]
    sys.modules[PACKAGE] = package
    return importlib.import_module(f"{PACKAGE}.{MODELING}")
