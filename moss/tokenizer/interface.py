"""What every audio tokenizer offers, and the checks of what callers hand to it."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from moss.errors import DataError
from moss.spec import TokenizerSpec


@runtime_checkable
class AudioTokenizer(Protocol):
    """Waveforms to codes and back.

    Codes are int64 of shape (frames, codebooks). A waveform of N samples has ceil(N / samples_per_frame) frames.
    What comes out for one item never depends on the items beside it.
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
        """Codes (frames, codebooks) int64 of each 1-D float32 mono waveform at the tokenizer's sampling rate.

        Args:
            waves: Waveforms of any lengths.
            num_codebooks: How many codebooks to compute, the first ones; null for all.

        Raises:
            DataError: A waveform is empty, has more than one dimension, or holds a non-finite sample.
        """
        ...

    def decode(self, codes: Sequence[Tensor], num_samples: Sequence[int] | None = None) -> list[Tensor]:
        """Waveform of each item of codes (frames, k) with k <= num_codebooks, 1-D float32.

        The code `spec.pad_code` contributes nothing.

        Args:
            codes: One integer tensor per item; a prefix of the codebooks is enough.
            num_samples: True length of each item, to which the result is trimmed; null for whole frames.

        Raises:
            DataError: Codes out of range, no codebook or too many, or a length beyond the frames.
        """
        ...


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


def check_waves(waves: Sequence[Tensor]) -> None:
    """Refuse waveforms that cannot be encoded.

    Raises:
        DataError: Names the item and what is wrong with it.
    """
    for i, wave in enumerate(waves):
        if wave.dim() != 1:
            raise DataError(
                f"wave {i}: expected one dimension (mono samples), got shape {tuple(wave.shape)}; average its channels"
            )
        if not wave.is_floating_point():
            raise DataError(f"wave {i}: expected float samples in [-1, 1], got {wave.dtype}; divide by full scale")
        if wave.numel() == 0:
            raise DataError(f"wave {i}: is empty; leave empty clips out")
        finite = torch.isfinite(wave)
        if not bool(finite.all()):
            first = int((~finite).nonzero()[0])
            raise DataError(
                f"wave {i}: sample {first} is {float(wave[first])}; {int((~finite).sum())} samples are not finite"
            )


def check_codes(codes: Sequence[Tensor], num_samples: Sequence[int] | None, spec: TokenizerSpec) -> None:
    """Refuse codes that cannot be decoded.

    Raises:
        DataError: Names the item, the place and the value.
    """
    if num_samples is not None and len(num_samples) != len(codes):
        raise DataError(f"num_samples: expected one length per item, {len(codes)}, got {len(num_samples)}")
    for i, item in enumerate(codes):
        _check_item(i, item, spec)
        if num_samples is not None:
            longest = item.shape[0] * spec.samples_per_frame
            if not 0 <= num_samples[i] <= longest:
                raise DataError(
                    f"num_samples[{i}]: {item.shape[0]} frames hold at most {longest} samples, got {num_samples[i]}"
                )


def fingerprint(name: str, tensors: Iterable[tuple[str, Tensor]], *, dtype: str, batch_policy: str) -> str:
    """16 hex digits of the sha256 over everything that codes depend on.

    Args:
        name: The tokenizer's kind and settings that are not weights.
        tensors: Names and weights; sorted here.
        dtype: Arithmetic of the encoder.
        batch_policy: How items are put together, such as "single".
    """
    digest = hashlib.sha256(f"{name}\n{dtype}\n{batch_policy}\n".encode())
    for key, tensor in sorted(tensors, key=lambda entry: entry[0]):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_item(i: int, item: Tensor, spec: TokenizerSpec) -> None:
    if item.dim() != 2:
        raise DataError(f"codes {i}: expected shape (frames, codebooks), got {tuple(item.shape)}")
    if item.is_floating_point() or item.is_complex() or item.dtype is torch.bool:
        raise DataError(f"codes {i}: expected whole numbers, got {item.dtype}")
    if not 1 <= item.shape[1] <= spec.num_codebooks:
        raise DataError(
            f"codes {i}: expected 1 to {spec.num_codebooks} codebooks, got {item.shape[1]}; "
            "the shape is (frames, codebooks)"
        )
    wide = item.long()
    outside = (wide < 0) | (wide > spec.codebook_size)
    if bool(outside.any()):
        frame, codebook = (int(place) for place in outside.nonzero()[0])
        raise DataError(
            f"codes {i}: {int(wide[frame, codebook])} at frame {frame}, codebook {codebook} is outside "
            f"[0, {spec.codebook_size}] ({spec.pad_code} = no code)"
        )
