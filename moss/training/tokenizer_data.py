"""Waveform segments for training the tokenizer: which ones a step sees depends on the seed and the step alone."""

import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from moss.config.tokenizer_training import TokenizerTrainingConfig
from moss.data.audio import load_audio
from moss.data.manifest import Utterance, read_manifest
from moss.data.split import HELDOUT, TRAIN
from moss.errors import CheckpointError, DataError
from moss.spec import TokenizerSpec
from moss.tokenizer.recipe import seeded

_SEGMENTS = 1
"""Stream number of segment draws."""


@dataclass(frozen=True, slots=True)
class SegmentBatch:
    """Segments of one step."""

    wave_BN: Tensor
    utterance_ids: list[str]
    step: int


class Recordings:
    """Recordings at one rate, decoded once and kept as 16-bit samples while they fit.

    Rounding to 16 bits happens whether or not a recording is kept, so the budget changes no number.

    Args:
        sampling_rate_hz: Rate of the waveforms handed out.
        budget_bytes: Most memory to use; the least recently used recordings make room.
    """

    def __init__(self, sampling_rate_hz: int, budget_bytes: int) -> None:
        self._rate_hz, self._budget = sampling_rate_hz, budget_bytes
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0

    def wave(self, utterance: Utterance) -> Tensor:
        """Mono float32 waveform (N,).

        Raises:
            DataError: The audio cannot be read.
        """
        samples = self._kept.get(utterance.audio)
        if samples is None:
            wave = load_audio(utterance.audio, self._rate_hz)
            samples = (wave * 32767).round().clamp(-32768, 32767).to(torch.int16)
            self._keep(utterance.audio, samples)
        else:
            self._kept.move_to_end(utterance.audio)
        return samples.float() / 32767

    def _keep(self, key: str, samples: Tensor) -> None:
        size = 2 * samples.numel()
        if size > self._budget:
            return
        while self._bytes + size > self._budget:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= 2 * dropped.numel()
        self._kept[key] = samples
        self._bytes += size


class SegmentSampler:
    """Random segments, every second of audio being equally likely.

    Args:
        utterances: What to draw from; their `duration_s` are the weights.
        recordings: Reads them.
        segment_samples: Length of a segment; shorter recordings are padded with silence at the end.
        segments_per_step: Segments of one step.
        seed: Of the run.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        recordings: Recordings,
        segment_samples: int,
        segments_per_step: int,
        seed: int,
    ) -> None:
        self._utterances, self._recordings = utterances, recordings
        self._samples, self._count, self._seed = segment_samples, segments_per_step, seed
        durations = torch.tensor([utterance.duration_s for utterance in utterances], dtype=torch.float64)
        self._ends_s = durations.cumsum(0)

    def batch(self, step: int, stream: int = _SEGMENTS) -> SegmentBatch:
        """Segments (B, N) of a step; other `stream` numbers give other draws for the same step."""
        generator = seeded(self._seed, stream, step)
        total_s = float(self._ends_s[-1])
        points_s = torch.rand(self._count, generator=generator, dtype=torch.float64) * total_s
        starts = torch.rand(self._count, generator=generator, dtype=torch.float64)
        last = len(self._utterances) - 1
        chosen = [self._utterances[min(i, last)] for i in torch.searchsorted(self._ends_s, points_s).tolist()]
        waves = [self._cut(utterance, float(start)) for utterance, start in zip(chosen, starts, strict=True)]
        return SegmentBatch(torch.stack(waves), [utterance.id for utterance in chosen], step)

    def _cut(self, utterance: Utterance, start: float) -> Tensor:
        wave = self._recordings.wave(utterance)
        spare = wave.numel() - self._samples
        if spare <= 0:
            return torch.nn.functional.pad(wave, (0, -spare))
        first = int(start * (spare + 1))
        return wave[first : first + self._samples]


class SegmentStream(IterableDataset[SegmentBatch]):
    """Batches of steps `start`, `start` + 1, ... without end."""

    def __init__(self, sampler: SegmentSampler, start: int) -> None:
        self._sampler, self._start = sampler, start

    def __iter__(self) -> Iterator[SegmentBatch]:
        """From the start step on."""
        return (self._sampler.batch(step) for step in itertools.count(self._start))


class SegmentData(LightningDataModule):
    """Training segments from the module's cursor on, and whole held-out clips.

    Args:
        config: Manifest and segment settings.
        spec: Of the tokenizer that is trained.
        seed: Of the run.
        max_validation_clips: Held-out clips of a validation during training, spread over the manifest.

    Raises:
        DataError: No manifest, or it lacks training or held-out clips.
    """

    def __init__(
        self, config: TokenizerTrainingConfig, spec: TokenizerSpec, seed: int, max_validation_clips: int
    ) -> None:
        super().__init__()
        if config.manifest is None:
            raise DataError("tokenizer_training.manifest: is not set; make one with data_prep/01_manifest.py")
        utterances = read_manifest(config.manifest)
        self.train_clips = [utterance for utterance in utterances if utterance.split == TRAIN]
        self.heldout_clips = [utterance for utterance in utterances if utterance.split == HELDOUT]
        for name, clips in ((TRAIN, self.train_clips), (HELDOUT, self.heldout_clips)):
            if not clips:
                raise DataError(f"{config.manifest}: no clip of split {name!r} among {len(utterances)}; make it again")
        unknown = next((clip for clip in self.train_clips if clip.duration_s <= 0), None)
        if unknown is not None:
            raise DataError(
                f"{config.manifest}: {unknown.id} has no duration_s; segments are drawn in proportion to it"
            )
        frames = int(config.segment_s * spec.frames_per_s)
        if frames < 1:
            raise DataError(
                f"tokenizer_training.segment_s={config.segment_s} is shorter than one frame, {spec.seconds(1)} s"
            )
        self.recordings = Recordings(spec.sampling_rate_hz, config.cache_bytes)
        self.sampler = SegmentSampler(
            self.train_clips, self.recordings, frames * spec.samples_per_frame, config.segments_per_step, seed
        )
        every = max(1, len(self.heldout_clips) // max_validation_clips)
        self._validation = self.heldout_clips[::every][:max_validation_clips]

    @property
    def fingerprint(self) -> str:
        """Of everything that decides which samples a step sees."""
        lines = [f"{clip.id} {clip.sha256} {clip.duration_s}" for clip in self.train_clips]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must find unchanged."""
        return {"fingerprint": self.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse other data under a run.

        Raises:
            CheckpointError: The manifest is not that of the checkpoint.
        """
        if state_dict["fingerprint"] != self.fingerprint:
            raise CheckpointError(
                f"the manifest has changed since the checkpoint (fingerprint {state_dict['fingerprint'][:16]} then, "
                f"{self.fingerprint[:16]} now); restore it, or start another run with another name"
            )

    def train_dataloader(self) -> DataLoader[SegmentBatch]:
        """Segments from the next untrained step on."""
        assert self.trainer is not None
        cursor = getattr(self.trainer.lightning_module, "cursor", 0)
        return DataLoader(SegmentStream(self.sampler, cursor), batch_size=None)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Whole held-out waveforms (N,), one at a time."""
        clips = [self.recordings.wave(clip) for clip in self._validation]
        return DataLoader(clips, batch_size=None)  # type: ignore[arg-type]
