"""moss: open training and evaluation of the MOSS-TTS family of speech generators."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from moss.generation.speech_model import SpeechModel
    from moss.tokenizer.interface import AudioTokenizer

__version__ = "0.1.0"


def load(
    path: "Path | str",
    *,
    tokenizer: "AudioTokenizer | Path | str | None" = None,
    text_tokenizer: "Path | str | None" = None,
    device: "torch.device | str" = "cpu",
    dtype: "torch.dtype | str | None" = None,
    attention: str = "auto",
    offload: str = "none",
    member: str | None = None,
    template: str | None = None,
) -> "SpeechModel":
    """Load a generator, ready to speak.

    Args:
        path: A checkpoint folder of this program, a run folder (its newest checkpoint is taken), or a published folder
            (config.json and safetensors). Nothing in it is executed.
        tokenizer: The audio tokenizer: an object, the name of a configuration, its .yaml file, or a published
            tokenizer's folder. None takes what the checkpoint says; a published generator does not say, so that only
            codes can be made without it.
        text_tokenizer: `qwen`, `compact` or a tokenizer.json; None takes what the checkpoint says.
        device: Where the model runs.
        dtype: float32, bfloat16 or float16; None is float32 on a CPU, bfloat16 elsewhere.
        attention: auto, sdpa, flash_attention_2 or eager; what was chosen is written to stderr in one line.
        offload: `cpu` keeps the backbone's layers in main memory and copies each when it is needed; codes are the same.
        member: What the model was trained to do (tts, ttsd, voice_generator, sound_effect, realtime): a published
            folder does not say. One of Delay with 16 codebooks needs it, others are taken for tts or realtime.
        template: Prompt format of a published folder, where it is not its member's usual one.

    Raises:
        CheckpointError: No checkpoint, a damaged one, or tokenizers other than those it was trained with.
        GenerationError: The device, dtype or attention cannot be used.
    """
    from moss.generation.loading import load_speech_model

    return load_speech_model(
        path,
        tokenizer=tokenizer,
        text_tokenizer=text_tokenizer,
        device=device,
        dtype=dtype,
        attention=attention,
        offload=offload,
        member=member,
        template=template,
    )
