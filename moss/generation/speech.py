"""What generation returns: codes at once, sound when it is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from moss.data.audio import write_wav
from moss.errors import GenerationError
from moss.generation.segments import AudioSegment
from moss.tokenizer.interface import AudioTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechPart:
    """One piece of a long text.

    Attributes:
        text: Its words.
        num_frames: Frames that it added.
        stop_reason: Why it ended.
    """

    text: str
    num_frames: int
    stop_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechChunk:
    """The next frames of a stream.

    Attributes:
        codes: Shape (frames, codebooks).
        audio: Shape (samples,), or (2, samples) with a stereo tokenizer; None where the model was loaded without an
            audio tokenizer.
    """

    codes: Tensor
    audio: Tensor | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Speech:
    """One generation; may be given as the reference or prefix of another one.

    Attributes:
        id: Under which every model of the process finds it again.
        text: The words that were asked for, None for a sound effect.
        segments: The audio blocks, with the frames that the prompt gave.
        stop_reason: `end`, `max_frames`, `runaway` or `cancelled`; None where nothing was made.
        seed: The one given, or the run's.
        num_codebooks: Codebooks of a frame.
        tokenizer: Turns codes into sound; None if the model was loaded without one.
        tokenizer_fingerprint: Says whose codes these are where there is no tokenizer; None if nothing does.
        error: Why there is no speech; only in batches.
        parts: The pieces of a long text; empty if it was spoken in one go.
        elapsed_s: Time that making the codes took, shared equally within a batch.
    """

    id: str
    text: str | None
    segments: Sequence[AudioSegment]
    stop_reason: str | None
    seed: int
    num_codebooks: int
    tokenizer: AudioTokenizer | None = None
    tokenizer_fingerprint: str | None = None
    error: str | None = None
    parts: tuple[SpeechPart, ...] = ()
    elapsed_s: float = 0.0

    @cached_property
    def codes(self) -> Tensor:
        """What was generated, int64 of shape (frames, codebooks); frames given by a prefix are not in it."""
        made = [segment.codes[segment.num_given :] for segment in self.segments]
        return torch.cat(made) if made else torch.empty(0, self.num_codebooks, dtype=torch.long)

    @cached_property
    def audio(self) -> Tensor:
        """The waveform, decoded when first asked for; a prefix is not in it.

        float32 of shape (samples,), or (2, samples) with a stereo tokenizer.

        Raises:
            GenerationError: There is no audio tokenizer, or no speech.
        """
        if self.error is not None:
            raise GenerationError(f"{self.id}: has no audio, its request failed: {self.error}")
        tokenizer = self._tokenizer()
        # Given frames are decoded too: the tokenizer needs them as past.
        waves = tokenizer.decode([segment.codes for segment in self.segments])
        step = tokenizer.spec.samples_per_frame
        cut = [
            wave[..., part.num_given * step : len(part.codes) * step]
            for wave, part in zip(waves, self.segments, strict=True)
        ]
        return torch.cat(cut, dim=-1) if len(cut) > 1 else cut[0]

    @property
    def fingerprint(self) -> str | None:
        """Of the tokenizer whose codes these are; None if that is unknown."""
        return self.tokenizer_fingerprint if self.tokenizer is None else self.tokenizer.fingerprint

    @property
    def sampling_rate_hz(self) -> int:
        """Rate of `audio`.

        Raises:
            GenerationError: There is no audio tokenizer.
        """
        return self._tokenizer().spec.sampling_rate_hz

    @property
    def duration_s(self) -> float:
        """Length of the audio in seconds.

        Raises:
            GenerationError: There is no audio tokenizer.
        """
        return self._tokenizer().spec.seconds(len(self.codes))

    def required(self) -> "Speech":
        """This speech, if there is any.

        Raises:
            GenerationError: Its request failed.
        """
        if self.error is not None:
            raise GenerationError(f"{self.id}: {self.error}")
        return self

    def save(self, path: Path | str) -> Path:
        """Write the audio as a 16-bit wav, with two channels where it is stereo.

        Returns:
            The path.

        Raises:
            GenerationError: There is no audio tokenizer, or no speech.
        """
        write_wav(path, self.audio, self.sampling_rate_hz)
        return Path(path)

    def _tokenizer(self) -> AudioTokenizer:
        if self.tokenizer is None:
            raise GenerationError(
                f"{self.id}: only codes are available, because the model was loaded without an audio tokenizer; give "
                "`tokenizer=` to moss.load"
            )
        return self.tokenizer
