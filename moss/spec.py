"""Facts shared by every layer: rates, code shapes, special token ids, and the one shape legend.

Shape legend, used in annotations and as suffixes of local names (`logits_BPV`):
    B batch, P position (one LM position = one text id + one code per codebook), C channel (text, then codebooks),
    T frame (one tokenizer step), K codebook, D width, H heads, V vocabulary, N waveform sample.
Axis order is always batch, position, channel, feature; codes are (..., frames, codebooks).
"""

import math
from dataclasses import dataclass

IGNORE_LABEL = -100
"""Label of a position that carries no loss (the convention of torch's cross-entropy)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSpec:
    """What the rest of the program must know of an audio tokenizer."""

    sampling_rate_hz: int
    samples_per_frame: int
    num_codebooks: int
    codebook_size: int
    num_audio_channels: int = 1
    """1: waveforms are (samples,). 2: (2, samples); `samples_per_frame` and all lengths count samples per channel."""

    @property
    def frames_per_s(self) -> float:
        """Frames per second of audio."""
        return self.sampling_rate_hz / self.samples_per_frame

    @property
    def pad_code(self) -> int:
        """The code that stands for "no code": one past the last entry; it decodes to nothing."""
        return self.codebook_size

    @property
    def bits_per_s(self) -> float:
        """Bit rate of all codebooks."""
        return self.num_codebooks * math.log2(self.codebook_size) * self.frames_per_s

    def num_frames(self, num_samples: int) -> int:
        """Frames needed for a waveform; a partial last frame counts as one (the ceil rule)."""
        return math.ceil(num_samples / self.samples_per_frame)

    def seconds(self, num_frames: int) -> float:
        """Duration of whole frames in seconds."""
        return num_frames * self.samples_per_frame / self.sampling_rate_hz


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """Text-channel ids with a meaning of their own; None where an architecture has no such role.

    The defaults are the published Delay and Local-v1 ids.
    Source: MOSS-TTS moss_tts_delay/configuration_moss_tts.py @58b20a0 (config defaults).
    """

    pad: int = 151643
    im_start: int = 151644
    im_end: int = 151645
    audio_start: int | None = 151652
    audio_end: int | None = 151653
    user_slot: int = 151654
    gen_slot: int | None = 151656
    delay_slot: int | None = 151662
    text_pad: int | None = None

    @property
    def used(self) -> list[str]:
        """Names of the roles that have an id."""
        return [name for name in self.__slots__ if getattr(self, name) is not None]


SPECIAL_TOKEN_STRINGS = {
    "pad": "<|endoftext|>",
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
    "audio_start": "<|audio_start|>",
    "audio_end": "<|audio_end|>",
    "user_slot": "<|audio_user_slot|>",
    "gen_slot": "<|audio_assistant_gen_slot|>",
    "delay_slot": "<|audio_assistant_delay_slot|>",
}
"""How our text tokenizers spell each field of `SpecialTokens`."""
