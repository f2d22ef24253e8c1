"""What every baseline codec offers, and what codecs do alike with samples."""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moss.data.audio import FloatArray
from moss.errors import EvaluationError
from moss.tokenizer.interface import check_waves

PCM16_SCALE = 32768.0

Pcm16 = NDArray[np.int16]


@runtime_checkable
class Codec(Protocol):
    """A speech coder, heard only: waveform in, waveform out."""

    @property
    def name(self) -> str:
        """Short name of letters, digits and hyphens; usable in file names."""
        ...

    @property
    def label(self) -> str:
        """What tables and plots call it."""
        ...

    @property
    def sampling_rate_hz(self) -> int:
        """Rate of what goes in and comes out."""
        ...

    @property
    def bits_per_s(self) -> float | None:
        """Nominal bit rate; None where nothing is quantised."""
        ...

    @property
    def revision(self) -> str:
        """Packages with their versions, and every setting."""
        ...

    def reconstruct(self, wave: Tensor) -> Tensor:
        """Code a clip and decode it again.

        Args:
            wave: Mono float samples (samples,) at `sampling_rate_hz`; what lies beyond -1..1 is clipped.

        Returns:
            float32 of the same shape; the codec's own delay is removed, so that both begin together.

        Raises:
            DataError: the clip is empty, not mono, not float or not finite.
        """
        ...


def checked_samples(wave: Tensor) -> FloatArray:
    """Samples (samples,) of a clip that can be coded.

    Raises:
        DataError: the clip is empty, not mono, not float or not finite.
    """
    check_waves([wave])
    samples: FloatArray = wave.detach().to("cpu", torch.float32).numpy()
    return samples


def to_pcm16(samples: FloatArray) -> Pcm16:
    """Float samples, nominally -1..1, as 16-bit PCM."""
    pcm: Pcm16 = np.clip(np.round(samples * PCM16_SCALE), -32768, 32767).astype(np.int16)
    return pcm


def from_pcm16(pcm: Pcm16) -> FloatArray:
    """16-bit PCM as float samples."""
    return pcm.astype(np.float32) / np.float32(PCM16_SCALE)


def with_length(samples: FloatArray, num_samples: int) -> Tensor:
    """The first `num_samples` samples, with zeros behind where there are fewer."""
    kept = samples[:num_samples]
    return torch.from_numpy(np.pad(kept, (0, num_samples - kept.shape[0])))


def package_version(package: str) -> str:
    """Name and version of an installed package."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} (not installed)"


def codec_package(codec: str, package: str, module: str, extra: str) -> Any:
    """The module behind a codec.

    Args:
        codec: What messages call the codec.
        package: What they call the package.
        module: Name to import.
        extra: Of this project's extras, the one that brings it.

    Raises:
        EvaluationError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EvaluationError(
            f"{codec} needs {package}, which is not installed; run `pip install 'moss[{extra}]'` or leave the {codec} "
            "baseline out"
        ) from error
