"""Clips that a request refers to: a recording, a waveform, codes or an earlier generation, as codes of one model."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moss.data.audio import normalise_loudness, read_audio, resample
from moss.errors import GenerationError
from moss.generation.speech import Speech
from moss.tokenizer.interface import AudioTokenizer

logger = logging.getLogger(__name__)

MAX_REFERENCE_S = 300.0
"""A voice is known after a few seconds; a longer clip is most likely a whole recording given by mistake."""
MAX_CHANNELS = 2
SILENCE_PEAK = 1e-3
"""Clips that stay below -60 dBFS have no voice."""

Reference = str | Path | Tensor | tuple[Tensor, int] | Speech
"""A recording's path or the id of an earlier generation of any model; codes (frames, codebooks); (waveform, rate in
Hz); a generation.

A waveform has shape (samples,) or (channels, samples)."""


@dataclass(frozen=True, slots=True)
class ClipReader:
    """Turns references into what one model understands.

    Attributes:
        tokenizer: Encodes sound; None if only codes can be used.
        num_codebooks: Codebooks of the model.
        codebook_size: Entries of each.
        max_frames: Longest clip that the model has room for.
        normalise: Bring clips to the loudness that the model was trained with.
        find: The earlier generation of an id, or None.
        fingerprint: Of the tokenizer whose codes the model learnt, where there is no tokenizer; None if unknown.
    """

    tokenizer: AudioTokenizer | None
    num_codebooks: int
    codebook_size: int
    max_frames: int
    normalise: bool
    find: Callable[[str], Speech | None]
    fingerprint: str | None = None

    def speech(self, reference: Reference) -> Speech | None:
        """The earlier generation that is meant, if one is."""
        if isinstance(reference, Speech):
            return reference
        return self.find(reference) if isinstance(reference, str) else None

    def codes(self, reference: Reference, *, voice: bool = True) -> Tensor:
        """Codes of a clip, int64 of shape (frames, codebooks).

        Args:
            reference: The clip.
            voice: It only shows a voice, so that a long clip is a mistake; otherwise it is to be carried on.

        Raises:
            GenerationError: Silent, too long, no such clip, or codes of another tokenizer.
            DataError: A recording that cannot be read.
        """
        given = self._given_codes(reference)
        if given is not None:
            self._check_length(len(given), str(_name(reference)), voice=False)
            return given
        return self._encode(self.wave(reference, voice=voice))

    def joined_codes(self, references: Sequence[Reference]) -> Tensor:
        """Codes of several clips as one recording: the waveforms are joined, then encoded once.

        Clips that are codes already are joined as codes if all of them are.
        Source: MOSS-TTS docs/moss_ttsd_model_card.md @58b20a0.

        Raises:
            GenerationError: As `codes`.
            DataError: A recording that cannot be read.
        """
        given = [self._given_codes(reference) for reference in references]
        if all(codes is not None for codes in given):
            return torch.cat([codes for codes in given if codes is not None])
        waves = []
        for reference, codes in zip(references, given, strict=True):
            wave = self.wave(reference) if codes is None else self._needed_tokenizer().decode([codes])[0]
            waves.append(wave if wave.dim() == 1 else wave.mean(0))
        return self._encode(torch.cat(waves))

    def wave(self, reference: Reference, *, voice: bool = True) -> Tensor:
        """A clip as float32 mono samples at the tokenizer's rate, shape (samples,).

        Raises:
            GenerationError: Silent, too long, no such clip.
            DataError: A recording that cannot be read.
        """
        tokenizer, name = self._needed_tokenizer(), _name(reference)
        samples, rate_hz = self._samples(reference)
        wanted_hz = tokenizer.spec.sampling_rate_hz
        self._check_length(math.ceil(samples.shape[0] / rate_hz * tokenizer.spec.frames_per_s), name, voice)
        channels = samples.shape[1]
        if channels > MAX_CHANNELS:
            raise GenerationError(
                f"reference {name}: {channels} channels, at most {MAX_CHANNELS} are mixed down; pass the one "
                "with speech"
            )
        if not np.isfinite(samples).all():
            raise GenerationError(
                f"reference {name}: holds samples that are not finite (NaN or infinity); decode the recording again, "
                "or cut these samples out"
            )
        if channels > 1 or rate_hz != wanted_hz:
            logger.info("reference %s: %d Hz, %d channels, converted to %d Hz mono", name, rate_hz, channels, wanted_hz)
        mono = np.ascontiguousarray(samples.mean(axis=1, dtype=np.float32))
        peak = float(np.abs(mono).max()) if len(mono) else 0.0
        if peak < SILENCE_PEAK:
            raise GenerationError(
                f"reference {name}: is silent (peak {peak:.2g} of full scale, at least {SILENCE_PEAK:g} is needed); "
                "give a clip with the voice"
            )
        return torch.from_numpy(resample(mono, rate_hz, wanted_hz))

    def _samples(self, reference: Reference) -> tuple[np.ndarray, int]:
        """Samples of shape (samples, channels) and their rate."""
        speech = self.speech(reference)
        if speech is not None:
            return _columns(speech.audio), speech.sampling_rate_hz
        if isinstance(reference, tuple):
            if len(reference) != 2 or not isinstance(reference[1], int) or reference[1] <= 0:
                raise GenerationError("reference: expected (waveform, rate in Hz), for example (wave, 24000)")
            return _columns(torch.as_tensor(reference[0])), reference[1]
        if isinstance(reference, Tensor):
            raise GenerationError(
                f"reference: a tensor of {reference.dtype} with shape {tuple(reference.shape)} is neither codes (whole "
                "numbers, (frames, codebooks)) nor a waveform with its rate; give (waveform, rate in Hz)"
            )
        assert isinstance(reference, str | Path)
        if isinstance(reference, str) and not Path(reference).exists():
            raise GenerationError(
                f"reference {reference!r}: no such file, and none of the latest generations of this process has that "
                "id; give the recording's path, or the Speech itself"
            )
        return read_audio(reference)

    def _given_codes(self, reference: Reference) -> Tensor | None:
        """Codes that are there already and are this model's kind."""
        speech = self.speech(reference)
        if speech is not None:
            if speech.error is not None:
                raise GenerationError(f"reference {speech.id!r}: that generation failed: {speech.error}")
            can_hear = speech.tokenizer is not None and self.tokenizer is not None
            theirs, own = speech.fingerprint, self._own_fingerprint()
            foreign = theirs is not None and own is not None and theirs != own
            # Codes mean something to their own tokenizer only: what another one spoke is heard and encoded again.
            if can_hear and (foreign or speech.num_codebooks < self.num_codebooks):
                return None
            if foreign:
                raise GenerationError(
                    f"reference {speech.id!r}: has codes of tokenizer {theirs}, the model speaks those of {own}; load "
                    "both models with `tokenizer=`, so that the sound can be encoded again, and keep both"
                )
            return self._checked_codes(speech.codes, repr(speech.id))
        if isinstance(reference, Tensor) and reference.dim() == 2 and _is_whole(reference):
            return self._checked_codes(reference, _name(reference))
        return None

    def _own_fingerprint(self) -> str | None:
        return self.fingerprint if self.tokenizer is None else self.tokenizer.fingerprint

    def _checked_codes(self, codes: Tensor, name: str) -> Tensor:
        frames, width = codes.shape
        if frames == 0:
            raise GenerationError(f"reference {name}: has no frame; expected codes of shape (frames, codebooks)")
        if width < self.num_codebooks:
            raise GenerationError(
                f"reference {name}: {width} codebooks, the model needs {self.num_codebooks}; expected codes of shape "
                "(frames, codebooks), encoded with at least as many codebooks as the model has"
            )
        if width > self.num_codebooks:
            logger.info("reference %s: the first %d of %d codebooks are used", name, self.num_codebooks, width)
        used = codes[:, : self.num_codebooks].long().cpu()
        lowest, highest = int(used.min()), int(used.max())
        if lowest < 0 or highest >= self.codebook_size:
            raise GenerationError(
                f"reference {name}: codes range over {lowest}..{highest}, outside [0, {self.codebook_size}); "
                "were they made by another tokenizer?"
            )
        return used

    def _check_length(self, frames: int, name: str, voice: bool) -> None:
        seconds = f"{frames} frames"
        limit = f"the model has room for {self.max_frames} frames"
        too_long = frames > self.max_frames
        if self.tokenizer is not None:
            spec = self.tokenizer.spec
            seconds = f"{spec.seconds(frames):.1f} s ({frames} frames)"
            longest_s = min(spec.seconds(self.max_frames), MAX_REFERENCE_S if voice else math.inf)
            too_long = frames > math.ceil(longest_s * spec.frames_per_s)
            limit = f"at most {longest_s:.1f} s can be used"
        if too_long:
            raise GenerationError(
                f"reference {name}: is {seconds} long, {limit}; cut out 5 to 30 s in which only the wanted voice speaks"
            )

    def _needed_tokenizer(self) -> AudioTokenizer:
        if self.tokenizer is None:
            raise GenerationError(
                "a recording as reference needs an audio tokenizer and the model was loaded without one; give "
                "`tokenizer=` to moss.load, or codes as the reference"
            )
        return self.tokenizer

    def _encode(self, wave: Tensor) -> Tensor:
        wave = normalise_loudness(wave) if self.normalise else wave
        return self._needed_tokenizer().encode([wave], self.num_codebooks)[0].cpu()


def _columns(wave: Tensor) -> np.ndarray:
    """A waveform (samples,) or (channels, samples) as (samples, channels)."""
    if wave.dim() not in (1, 2) or not wave.is_floating_point() or wave.numel() == 0:
        raise GenerationError(
            f"reference: expected a float waveform of shape (samples,) or (channels, samples), got {wave.dtype} of "
            f"shape {tuple(wave.shape)}"
        )
    samples = wave.detach().cpu().float().numpy()
    return samples[:, None] if samples.ndim == 1 else np.ascontiguousarray(samples.T)


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)


def _name(reference: Reference) -> str:
    """How messages call a reference."""
    if isinstance(reference, Speech):
        return repr(reference.id)
    if isinstance(reference, str | Path):
        return str(reference)
    return "clip"
