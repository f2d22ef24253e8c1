"""Run the published Delay and Local models from an unmodified checkout of OpenMOSS/MOSS-TTS.

The checkout was written for transformers 5.0; what later versions moved or renamed is given back here, from outside.
Nothing of the checkout is changed, and nothing in it is part of this project.
"""

import importlib
import inspect
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import masking_utils
from transformers.cache_utils import DynamicCache
from transformers.generation.configuration_utils import GenerationConfig
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList
from transformers.models.qwen3 import Qwen3Config

from moss.config.model import DelayModelConfig, LocalModelConfig
from moss.errors import ConfigError
from moss.model.backbone import backbone_config

DELAY, LOCAL = "moss_tts_delay", "moss_tts_local"


def check_checkout(checkout: Path) -> None:
    """Refuse a folder that has not both models.

    Raises:
        ConfigError: It is no checkout of OpenMOSS/MOSS-TTS.
    """
    for package in (DELAY, LOCAL):
        if not (checkout / package / "modeling_moss_tts.py").is_file():
            raise ConfigError(
                f"{checkout} has no {package}/modeling_moss_tts.py; give the folder of a checkout of OpenMOSS/MOSS-TTS"
            )


def reference_delay(checkout: Path, config: DelayModelConfig, state: dict[str, Tensor]) -> nn.Module:
    """The published MossTTSDelayModel with our geometry and weights, attention sdpa, in eval mode."""
    modeling = _module(checkout, DELAY)
    return _load(modeling, _published(modeling, config), state)


def reference_local(checkout: Path, config: LocalModelConfig, state: dict[str, Tensor]) -> nn.Module:
    """The published MossTTSLocal v1 model, see `reference_delay`."""
    modeling = _module(checkout, LOCAL)
    modeling.create_causal_mask = _renamed_arguments(masking_utils.create_causal_mask)
    sizes = {
        "additional_mlp_ffn_hidden_size": config.depth_mlp_size,
        "local_ffn_hidden_size": config.depth_intermediate_size,
        "local_hidden_size": config.depth_hidden_size,
        "local_num_layers": config.depth_num_layers,
    }
    model = _load(modeling, _published(modeling, config, **sizes), state)
    # Heads of the depth transformer read the implementation from their own copy of the configuration.
    model.local_transformer_config._attn_implementation = "sdpa"
    return model


def generate_delay(model: nn.Module, prompt: Tensor, num_rows: int) -> Tensor:
    """Greedy decoding of one prompt, shape (positions, channels), by the published loop; the new rows."""
    mask = torch.ones(1, len(prompt), dtype=torch.bool)
    result = model.generate(  # type: ignore[operator]
        prompt.unsqueeze(0), mask, max_new_tokens=num_rows, text_temperature=0.0, audio_temperature=0.0
    )
    return result[0][1][-num_rows:]


def generate_local(model: Any, prompt: Tensor, num_rows: int) -> Tensor:
    """Greedy decoding of a batch of equal prompts, shape (batch, positions, channels), by the published loop.

    transformers' own `generate` no longer prepares what this loop expects, so the loop is called directly.
    """
    batch, length = prompt.shape[:2]
    model._get_initial_cache_position = lambda size, device, kwargs: {**kwargs, "cache_position": torch.arange(size)}
    model.prepare_inputs_for_generation = _prepare_inputs
    model._update_model_kwargs_for_generation = _update_inputs
    settings = model._build_generation_config(
        GenerationConfig(), max_new_tokens=num_rows, text_temperature=0.0, audio_temperature=0.0
    )
    settings.max_length = length + num_rows
    stopping = StoppingCriteriaList(
        [MaxLengthCriteria(max_length=settings.max_length), EosTokenCriteria(eos_token_id=settings.eos_token_id)]
    )
    with torch.inference_mode():
        result = model._sample(
            prompt,
            LogitsProcessorList(),
            stopping,
            settings,
            synced_gpus=False,
            attention_mask=torch.ones(batch, length, dtype=torch.long),
            past_key_values=DynamicCache(),
            use_cache=True,
        )
    return torch.stack([rows[-num_rows:] for _, rows in result])


def _prepare_inputs(input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
    """Only rows that the cache does not hold yet; positions from the mask, as transformers 5.0 did."""
    seen = kwargs["past_key_values"].get_seq_length()
    positions = (kwargs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return {**kwargs, "input_ids": input_ids[:, seen:], "position_ids": positions[:, seen:]}


def _update_inputs(outputs: Any, model_kwargs: dict[str, Any], **_: Any) -> dict[str, Any]:
    mask = model_kwargs["attention_mask"]
    return {
        **model_kwargs,
        "past_key_values": outputs.past_key_values,
        "attention_mask": torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1),
        "cache_position": model_kwargs["cache_position"][-1:] + 1,
    }


def _module(checkout: Path, package: str) -> Any:
    sys.dont_write_bytecode = True
    # Only reads and writes wav files there.
    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    return importlib.import_module(f"{package}.modeling_moss_tts")


def _published(modeling: Any, config: DelayModelConfig, **sizes: int) -> Any:
    language = Qwen3Config(**backbone_config(config).to_dict())
    language._attn_implementation = "sdpa"
    settings = modeling.MossTTSDelayConfig(
        language_config=language,
        n_vq=config.num_codebooks,
        audio_vocab_size=config.codebook_size,
        audio_pad_code=config.codebook_size,
        **sizes,
    )
    settings._attn_implementation = "sdpa"
    settings.return_dict = True
    return settings


def _load(modeling: Any, settings: Any, state: dict[str, Tensor]) -> Any:
    # The published classes draw the progress of every step on the screen.
    modeling.tqdm = lambda steps=None, **_: _Silent() if steps is None else steps
    model = modeling.MossTTSDelayModel(settings)
    model.load_state_dict(state)
    return model.eval()


class _Silent:
    def update(self) -> None:
        """Draw nothing."""


def _renamed_arguments(function: Any) -> Any:
    known = set(inspect.signature(function).parameters)

    def call(**arguments: Any) -> Any:
        renamed = {{"input_embeds": "inputs_embeds"}.get(name, name): value for name, value in arguments.items()}
        return function(**{name: value for name, value in renamed.items() if name in known})

    return call
