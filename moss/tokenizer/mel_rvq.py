"""The baseline tokenizer: mel frames, residual k-means codes, Griffin-Lim synthesis. It ships with fitted weights.

One frame is 80 ms of 16 kHz audio, seen as 8 mel vectors of 80 bands. Magnitudes are compressed by a power (log frames
spend most of the code on the noise between words), the 640 values are projected by PCA, and each codebook quantises
what the ones before it left over. The decoder estimates each frame from its own sum of entries and its two neighbours'
by a linear map, one map for each number of codes a frame has. Everything runs on the CPU, one utterance at a time and
with one BLAS thread, so codes depend on the utterance and the weights alone.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moss.config.tokenizer import MelRvqConfig
from moss.errors import CheckpointError
from moss.spec import TokenizerSpec
from moss.tokenizer import interface
from moss.tokenizer.mel_spectrogram import FloatArray, MelSpectrogram, one_blas_thread

FORMAT_VERSION = "1"
BATCH_POLICY = "single"
VECTORS_PER_FRAME = 8

_TENSORS = ("filterbank", "mean", "basis", "codebooks", "smoothing")
_METADATA_KEY = "mel_rvq"
_FIT_COMMAND = "python data_prep/fit_mel_rvq.py"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MelRvqWeights:
    """What a fit finds, and what the weights file holds. F = 8 vectors x bands, D = projected width."""

    sampling_rate_hz: int
    hop: int
    exponent: float
    """Power that magnitudes are raised to before they are compared; 1 would be linear."""
    filterbank: FloatArray
    """(bands, bins)."""
    mean: FloatArray
    """(F,), mean of the compressed frames."""
    basis: FloatArray
    """(F, D), orthonormal directions, the strongest first."""
    codebooks: NDArray[np.float16]
    """(codebooks, codebook_size, D)."""
    smoothing: NDArray[np.float16]
    """(codebooks, 3 D, D): entry k - 1 maps the sums of the frame before, the frame and the one after to the frame,
    where the frame has k codes."""

    @property
    def spec(self) -> TokenizerSpec:
        """Rates and code sizes."""
        return TokenizerSpec(
            sampling_rate_hz=self.sampling_rate_hz,
            samples_per_frame=self.hop * VECTORS_PER_FRAME,
            num_codebooks=self.codebooks.shape[0],
            codebook_size=self.codebooks.shape[1],
        )

    def spectrogram(self) -> MelSpectrogram:
        """The analysis these weights were fitted on."""
        return MelSpectrogram(hop=self.hop, filterbank=self.filterbank)

    def tensors(self) -> dict[str, Tensor]:
        """Arrays by name, as stored."""
        return {name: torch.from_numpy(getattr(self, name)) for name in _TENSORS}

    def save(self, path: Path, notes: dict[str, str]) -> None:
        """Write the safetensors file; `notes` join the metadata. The caller makes the write atomic."""
        from safetensors.torch import save_file

        facts = {
            "version": FORMAT_VERSION,
            "sampling_rate_hz": self.sampling_rate_hz,
            "hop": self.hop,
            "exponent": self.exponent,
        }
        # One entry only: the file format keeps several in no fixed order, and equal fits shall give equal files.
        metadata = {_METADATA_KEY: json.dumps(notes | facts, sort_keys=True)}
        save_file(self.tensors(), str(path), metadata=metadata)
        path.chmod(0o644)

    @classmethod
    def load(cls, path: Path) -> "MelRvqWeights":
        """Read and check a weights file.

        Raises:
            CheckpointError: Missing, not safetensors, of another kind or version, or arrays that do not fit together.
        """
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise CheckpointError(
                f"{path} does not exist; leave tokenizer.weights empty for the shipped weights, or fit your own with "
                f"`{_FIT_COMMAND}`"
            )
        try:
            with safe_open(str(path), "np") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not a safetensors file ({error}); fetch or fit it again") from error
        facts = _facts(path, metadata)
        _check_arrays(path, arrays)
        return cls(**facts, **arrays)


class MelRvqTokenizer:
    """The baseline behind the `AudioTokenizer` interface."""

    def __init__(self, weights: MelRvqWeights, *, griffin_lim_iterations: int = 32) -> None:
        """Take over fitted weights; the number of Griffin-Lim iterations changes the sound but no code."""
        self.spec = weights.spec
        self._weights = weights
        self._iterations = griffin_lim_iterations
        self._spectrogram = weights.spectrogram()
        self._codebooks: FloatArray = weights.codebooks.astype(np.float32)
        self._smoothing: FloatArray = weights.smoothing.astype(np.float32)
        self._half_norms: FloatArray = np.square(self._codebooks).sum(axis=2) / 2

    @classmethod
    def load(cls, config: MelRvqConfig, device: str | torch.device = "cpu") -> "MelRvqTokenizer":
        """Build the tokenizer of the configured weights file, or of the shipped one.

        Args:
            config: Where the weights are and how to synthesise.
            device: Accepted for any value; this tokenizer always computes on the CPU.

        Raises:
            CheckpointError: The file is missing or does not fit.
        """
        path = config.weights if config.weights is not None else shipped_weights()
        return cls(MelRvqWeights.load(path), griffin_lim_iterations=config.griffin_lim_iterations)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits over format, analysis, weights, arithmetic and batch policy."""
        weights = self._weights
        name = f"mel_rvq {FORMAT_VERSION} {weights.sampling_rate_hz} {weights.hop} {weights.exponent!r}"
        return interface.fingerprint(name, weights.tensors(), dtype="float32", batch_policy=BATCH_POLICY)

    @torch.no_grad()
    def encode(self, waves: Sequence[Tensor], num_codebooks: int | None = None) -> list[Tensor]:
        """See `AudioTokenizer.encode`; fewer codebooks are a prefix of more."""
        count = interface.check_num_codebooks(num_codebooks, self.spec)
        interface.check_waves(waves)
        with one_blas_thread():
            return [self._encode(wave.detach().to("cpu", torch.float32).numpy(), count) for wave in waves]

    @torch.no_grad()
    def decode(self, codes: Sequence[Tensor], num_samples: Sequence[int] | None = None) -> list[Tensor]:
        """See `AudioTokenizer.decode`."""
        interface.check_codes(codes, num_samples, self.spec)
        waves = []
        with one_blas_thread():
            for i, item in enumerate(codes):
                wave = self._decode(item.detach().to("cpu", torch.int64).numpy())
                waves.append(torch.from_numpy(wave if num_samples is None else wave[: num_samples[i]]))
        return waves

    def _encode(self, wave: FloatArray, num_codebooks: int) -> Tensor:
        frames = compressed_frames(wave, self._spectrogram, self._weights.exponent)
        residual = (frames - self._weights.mean) @ self._weights.basis
        codes = np.empty((residual.shape[0], num_codebooks), dtype=np.int64)
        for k in range(num_codebooks):
            # The nearest entry c of r minimises |c|^2 / 2 - r.c; |r|^2 is the same for all of them.
            codes[:, k] = np.argmin(self._half_norms[k] - residual @ self._codebooks[k].T, axis=1)
            residual -= self._codebooks[k][codes[:, k]]
        return torch.from_numpy(codes)

    def _decode(self, codes: NDArray[np.int64]) -> FloatArray:
        if codes.shape[0] == 0:
            return np.zeros(0, dtype=np.float32)
        present = codes != self.spec.pad_code
        sums = np.zeros((codes.shape[0], self._codebooks.shape[2]), dtype=np.float32)
        for k in range(codes.shape[1]):
            sums[present[:, k]] += self._codebooks[k][codes[present[:, k], k]]
        frames = self._smoothed(sums, present.sum(axis=1)) @ self._weights.basis.T + self._weights.mean
        compressed = np.maximum(frames.reshape(codes.shape[0] * VECTORS_PER_FRAME, -1), np.float32(0))
        mel = np.power(compressed, np.float32(1 / self._weights.exponent))
        return self._spectrogram.synthesise(mel, self._iterations)

    def _smoothed(self, sums: FloatArray, num_codes: NDArray[np.int64]) -> FloatArray:
        """Estimate frames (T, D) from the sums of their entries (T, D); a frame without codes stays the mean frame."""
        windows = with_neighbours(sums)
        estimate = np.zeros_like(sums)
        for count in np.unique(num_codes[num_codes > 0]):
            rows = num_codes == count
            estimate[rows] = windows[rows] @ self._smoothing[count - 1]
        return estimate


def shipped_weights() -> Path:
    """The fitted weights that come with the package."""
    return Path(str(files("moss.tokenizer") / "weights" / "mel_rvq.safetensors"))


def compressed_frames(wave: FloatArray, spectrogram: MelSpectrogram, exponent: float) -> FloatArray:
    """What is quantised: the compressed mel magnitudes (frames, 8 * bands) of a waveform (N,)."""
    frames = -(-wave.shape[0] // (spectrogram.hop * VECTORS_PER_FRAME))
    mel = spectrogram.analyse(wave, frames * VECTORS_PER_FRAME)
    return np.power(mel, np.float32(exponent)).reshape(frames, -1)


def with_neighbours(sums: FloatArray) -> FloatArray:
    """Frames (T, D) as (T, 3 D): the one before, the frame, the one after; zeros beyond both ends."""
    padded = np.pad(sums, ((1, 1), (0, 0)))
    return np.concatenate([padded[:-2], padded[1:-1], padded[2:]], axis=1)


def _facts(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """What the file says of itself; refuse one that is not ours or of another version."""
    try:
        facts: dict[str, Any] = json.loads(metadata[_METADATA_KEY])
        version = facts["version"]
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: no weights of the mel_rvq tokenizer (its metadata lacks {_METADATA_KEY!r} with a version); name "
            f"the file that `{_FIT_COMMAND}` wrote"
        ) from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: expected mel_rvq weights of version {FORMAT_VERSION}, got {version!r}; fit them again with "
            f"`{_FIT_COMMAND}`"
        )
    try:
        return {
            "sampling_rate_hz": int(facts["sampling_rate_hz"]),
            "hop": int(facts["hop"]),
            "exponent": float(facts["exponent"]),
        }
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: its metadata {facts} lacks a sampling_rate_hz, hop or exponent that is a number; fit it again "
            f"with `{_FIT_COMMAND}`"
        ) from error


def _check_arrays(path: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    """Refuse arrays that do not belong together."""
    missing, unknown = sorted(set(_TENSORS) - set(arrays)), sorted(set(arrays) - set(_TENSORS))
    if missing or unknown:
        raise CheckpointError(
            f"{path}: arrays missing {missing}, unknown {unknown}; fit it again with `{_FIT_COMMAND}`"
        )
    bands, width = arrays["filterbank"].shape[0], arrays["basis"].shape[-1]
    expected = {
        "mean": (VECTORS_PER_FRAME * bands,),
        "basis": (VECTORS_PER_FRAME * bands, width),
        "codebooks": (*arrays["codebooks"].shape[:2], width),
        "smoothing": (arrays["codebooks"].shape[0], 3 * width, width),
    }
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise CheckpointError(
                f"{path}: {name} has shape {arrays[name].shape}, expected {shape}; fit it again with `{_FIT_COMMAND}`"
            )
