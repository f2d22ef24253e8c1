"""What every audio tokenizer offers, and the checks of what callers hand to it."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from moss.config.generation import Compatibility
from moss.errors import DataError
from moss.spec import TokenizerSpec

if TYPE_CHECKING:
    from moss.tokenizer.streaming import DecoderStream, EncoderStream


@runtime_checkable
class AudioTokenizer(Protocol):
    """Waveforms to codes and back.

    Codes are int64 of shape (frames, codebooks). A waveform is float32 of shape (samples,), and (2, samples) for a
    stereo tokenizer; lengths count samples per audio channel. One of N samples has ceil(N / samples_per_frame) frames.
    With batch_policy `single` what comes out for one item never depends on the items beside it; bucketed batches are
    equal up to ties in the last bit.
    """

    @property
    def spec(self) -> TokenizerSpec:
        """Rates and code sizes."""
        ...

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change whenever the codes may change: name, weights, dtype and batch policy."""
        ...

    def encode(self, waves: Sequence[Tensor], num_codebooks: int | None = None) -> list[Tensor]:
        """Codes (frames, codebooks) int64 of each float32 waveform at the tokenizer's sampling rate.

        Args:
            waves: Waveforms of any lengths, (samples,) each. A stereo tokenizer takes (2, samples) as well; it hears
                a mono waveform on both channels.
            num_codebooks: How many codebooks to compute, the first ones; null for all.

        Raises:
            DataError: A waveform is empty, has more audio channels than the tokenizer, or holds a non-finite sample.
        """
        ...

    def decode(self, codes: Sequence[Tensor], num_samples: Sequence[int] | None = None) -> list[Tensor]:
        """Waveform of each item of codes (frames, k) with k <= num_codebooks: float32 (samples,) or (2, samples).

        The code `spec.pad_code` contributes nothing.

        Args:
            codes: One integer tensor per item; a prefix of the codebooks is enough.
            num_samples: True length of each item, to which the result is trimmed; null for whole frames.

        Raises:
            DataError: Codes out of range, no codebook or too many, or a length beyond the frames.
        """
        ...


class StreamingTokenizer(AudioTokenizer, Protocol):
    """A tokenizer whose streams give, up to rounding, what the whole waveform or all codes at once would give.

    Weights are only read: any number of streams, in any number of threads, share one tokenizer.
    """

    def encoder_stream(
        self, num_codebooks: int | None = None, *, compatibility: Compatibility = Compatibility.none
    ) -> "EncoderStream":
        """A new stream of samples to codes of the first `num_codebooks` codebooks; null for all."""
        ...

    def decoder_stream(self, *, compatibility: Compatibility = Compatibility.none) -> "DecoderStream":
        """A new stream of codes to samples."""
        ...


def can_stream(tokenizer: AudioTokenizer | None) -> TypeGuard[StreamingTokenizer]:
    """Whether a tokenizer has exact streams.

    Its class is asked: `isinstance` with a protocol may evaluate every property, and a fingerprint reads all weights.
    """
    return all(hasattr(type(tokenizer), name) for name in ("encoder_stream", "decoder_stream"))


def check_num_codebooks(num_codebooks: int | None, spec: TokenizerSpec) -> int:
    """The number of codebooks to use: all for None.

    Raises:
        DataError: Not within 1 and `spec.num_codebooks`.
    """
    if num_codebooks is None:
        return spec.num_codebooks
    if not 1 <= num_codebooks <= spec.num_codebooks:
        raise DataError(f"num_codebooks: expected 1 to {spec.num_codebooks}, got {num_codebooks}")
    return num_codebooks


def check_waves(waves: Sequence[Tensor], num_audio_channels: int = 1) -> None:
    """Refuse waveforms that cannot be encoded.

    Raises:
        DataError: Names the item and what is wrong with it.
    """
    for i, wave in enumerate(waves):
        check_samples(f"wave {i}", wave, num_audio_channels)
        if wave.numel() == 0:
            raise DataError(f"wave {i}: is empty; leave empty clips out")


def check_samples(name: str, samples: Tensor, num_audio_channels: int = 1) -> None:
    """Refuse a waveform, or a chunk of one, that is no sound; a chunk may be empty.

    Raises:
        DataError: Starts with `name` and says what is wrong.
    """
    shape = tuple(samples.shape)
    if num_audio_channels == 1 and samples.dim() != 1:
        raise DataError(
            f"{name}: expected one dimension (mono samples), got shape {shape}; average its channels: this tokenizer "
            "is mono"
        )
    if num_audio_channels > 1 and samples.dim() != 1 and shape[:-1] != (num_audio_channels,):
        raise DataError(
            f"{name}: expected shape ({num_audio_channels}, samples), or (samples,) to be heard on all channels, got "
            f"{shape}; mix or average its channels"
        )
    if not samples.is_floating_point():
        raise DataError(f"{name}: expected float samples in [-1, 1], got {samples.dtype}; divide by full scale")
    # A sum is finite only if all its terms are, and needs no array of its own; an overflow is looked at more closely.
    if not math.isfinite(float(samples.sum())):
        finite = torch.isfinite(samples)
        if not bool(finite.all()):
            place = (~finite).nonzero()[0].tolist()
            raise DataError(
                f"{name}: sample {place[-1]} is {float(samples[tuple(place)])}; {int((~finite).sum())} samples are not "
                "finite"
            )


def check_codes(codes: Sequence[Tensor], num_samples: Sequence[int] | None, spec: TokenizerSpec) -> None:
    """Refuse codes that cannot be decoded.

    Raises:
        DataError: Names the item, the place and the value.
    """
    if num_samples is not None and len(num_samples) != len(codes):
        raise DataError(f"num_samples: expected one length per item, {len(codes)}, got {len(num_samples)}")
    for i, item in enumerate(codes):
        check_code_array(f"codes {i}", item, spec)
        if num_samples is not None:
            longest = item.shape[0] * spec.samples_per_frame
            if not 0 <= num_samples[i] <= longest:
                raise DataError(
                    f"num_samples[{i}]: {item.shape[0]} frames hold at most {longest} samples, got {num_samples[i]}"
                )


def check_code_array(name: str, item: Tensor, spec: TokenizerSpec) -> None:
    """Refuse one array of codes that cannot be decoded.

    Raises:
        DataError: Starts with `name` and says what is wrong.
    """
    if item.dim() != 2:
        raise DataError(f"{name}: expected shape (frames, codebooks), got {tuple(item.shape)}")
    if item.is_floating_point() or item.is_complex() or item.dtype is torch.bool:
        raise DataError(f"{name}: expected whole numbers, got {item.dtype}")
    if not 1 <= item.shape[1] <= spec.num_codebooks:
        raise DataError(
            f"{name}: expected 1 to {spec.num_codebooks} codebooks, got {item.shape[1]}; "
            "the shape is (frames, codebooks)"
        )
    wide = item.long()
    outside = (wide < 0) | (wide > spec.codebook_size)
    if bool(outside.any()):
        frame, codebook = (int(place) for place in outside.nonzero()[0])
        raise DataError(
            f"{name}: {int(wide[frame, codebook])} at frame {frame}, codebook {codebook} is outside "
            f"[0, {spec.codebook_size}] ({spec.pad_code} = no code)"
        )


def fingerprint(name: str, tensors: Mapping[str, Tensor], *, dtype: str, batch_policy: str) -> str:
    """16 hex digits of the sha256 over everything that codes depend on.

    Args:
        name: The tokenizer's kind and settings that are not weights.
        tensors: The weights by name; asked for one at a time.
        dtype: Arithmetic of the encoder.
        batch_policy: How items are put together, such as "single".
    """
    digest = hashlib.sha256(f"{name}\n{dtype}\n{batch_policy}\n".encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
