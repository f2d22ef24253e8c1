"""Waveform segments for training the tokenizer: which ones a step sees depends on the seed and the step alone."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from moss.config.tokenizer_training import TokenizerTrainingConfig
from moss.data.manifest import Utterance, read_manifest
from moss.data.split import HELDOUT, TRAIN
from moss.data.text_tokenizer import build_text_tokenizer
from moss.errors import CheckpointError, ConfigError, DataError
from moss.spec import TokenizerSpec
from moss.tokenizer.recipe import seeded
from moss.training.processes import Processes
from moss.training.tokenizer_recordings import REMEDY, BrokenClips, Recordings
from moss.training.tokenizer_texts import TranscriptReader, Transcripts

_SEGMENTS, _GAIN = 1, 6
"""Stream numbers of the draws of segments and of their gains; other modules of the training have those between."""


@dataclass(frozen=True, slots=True)
class SegmentBatch:
    """Segments of one step, or one process' share of them."""

    waves: Tensor
    """(B, N); stereo (B, 2, N)."""
    utterance_ids: list[str]
    step: int
    rows: list[int]
    """Which segments of the step these are."""
    num_segments: int
    """Of the whole step."""
    transcripts: Transcripts | None = None
    """Where the semantic loss is on."""

    @property
    def share(self) -> float:
        """Of the step's segments."""
        return len(self.rows) / self.num_segments

    def to(self, device: torch.device) -> "SegmentBatch":
        """The same on a device."""
        transcripts = None if self.transcripts is None else self.transcripts.to(device)
        waves = self.waves.to(device)
        return SegmentBatch(waves, self.utterance_ids, self.step, self.rows, self.num_segments, transcripts)


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """How segments are cut.

    Attributes:
        samples: Length of a segment; shorter recordings are padded with silence at the end.
        segments_at: Segments of a step, given its number.
        seed: Of the run.
        gain_db: Segments are made louder or softer by up to so much.
        mine: Which process asks; it gets its share of a step.
    """

    samples: int
    segments_at: Callable[[int], int]
    seed: int
    gain_db: float = 0.0
    mine: Processes = field(default_factory=Processes)


class SegmentSampler:
    """Random segments, every second of audio being equally likely, of its source where those have weights.

    In place of a segment whose recording cannot be read there is silence without a transcript; no other segment of the
    run is another for it.

    Args:
        utterances: What to draw from; their `duration_s` are the weights.
        recordings: Reads them.
        plan: How many, how long, how loud.
        reader: Gives segments their transcripts; null for none.
        source_weights: Share of the segments of each source of `utterances`; empty: by duration alone.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        recordings: Recordings,
        plan: SegmentPlan,
        reader: TranscriptReader | None = None,
        source_weights: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self._utterances, self._recordings, self._plan, self._reader = utterances, recordings, plan, reader
        durations = torch.tensor([utterance.duration_s for utterance in utterances], dtype=torch.float64)
        if source_weights:
            sources = [utterance.source for utterance in utterances]
            total_s = dict.fromkeys(sources, 0.0)
            for utterance in utterances:
                total_s[utterance.source] += utterance.duration_s
            scales = [source_weights[source] / total_s[source] for source in sources]
            durations = durations * torch.tensor(scales, dtype=torch.float64)
        self._ends_s = durations.cumsum(0)
        self.broken = BrokenClips(utterances)

    def batch(self, step: int) -> SegmentBatch:
        """This process' share of the segments that are trained on in a step.

        Raises:
            DataError: Too many recordings cannot be read; see `BrokenClips`.
        """
        count = self._plan.segments_at(step)
        return self._draw(step, _SEGMENTS, count, self._plan.mine.share(range(count)))

    def extra(self, number: int, stream: int, step: int) -> SegmentBatch:
        """All segments of a draw that has nothing to do with a step's; as many as `step` has.

        Args:
            number: Of the draw within its stream.
            stream: Draws of different purposes have different ones.
            step: When it is made.
        """
        count = self._plan.segments_at(step)
        return self._draw(number, stream, count, list(range(count)))

    def _draw(self, number: int, stream: int, count: int, rows: list[int]) -> SegmentBatch:
        generator = seeded(self._plan.seed, stream, number)
        total_s = float(self._ends_s[-1])
        points_s = torch.rand(count, generator=generator, dtype=torch.float64) * total_s
        starts = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
        last = len(self._utterances) - 1
        drawn = [self._utterances[min(i, last)] for i in torch.searchsorted(self._ends_s, points_s).tolist()]
        chosen = [drawn[row] for row in rows]
        cut = [self._cut(drawn[row], starts[row]) for row in rows]
        waves = torch.stack([wave for wave, _ in cut])
        if self._plan.gain_db:
            waves = waves * self._gains(number, stream, count)[rows].view(-1, *[1] * (waves.dim() - 1))
        transcripts = None
        if self._reader is not None:
            heard = [clip if samples else _wordless(clip) for clip, (_, samples) in zip(chosen, cut, strict=True)]
            transcripts = self._reader.read(heard, [samples for _, samples in cut], self._plan.samples)
        return SegmentBatch(waves, [utterance.id for utterance in chosen], number, rows, count, transcripts)

    def _gains(self, number: int, stream: int, count: int) -> Tensor:
        generator = seeded(self._plan.seed, _GAIN, stream, number)
        decibels = (2 * torch.rand(count, generator=generator) - 1) * self._plan.gain_db
        return 10 ** (decibels / 20)

    def _cut(self, utterance: Utterance, start: float) -> tuple[Tensor, int]:
        """A segment, and the length of the recording it is of; silence of none where that cannot be read."""
        wave = self._recordings.find(utterance)
        if wave is None:
            self.broken.bad(utterance, self._recordings.broken[utterance.audio])
            return self._recordings.silence(self._plan.samples), 0
        self.broken.good(utterance)
        samples = wave.shape[-1]
        spare = samples - self._plan.samples
        if spare <= 0:
            return torch.nn.functional.pad(wave, (0, -spare)), samples
        first = int(start * (spare + 1))
        return wave[..., first : first + self._plan.samples], samples


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
        mine: Which process this is.

    Raises:
        ConfigError: Fewer segments than processes.
        DataError: No manifest, or it lacks training or held-out clips.
    """

    def __init__(
        self,
        config: TokenizerTrainingConfig,
        spec: TokenizerSpec,
        seed: int,
        max_validation_clips: int,
        mine: Processes = Processes(),  # noqa: B008 -- frozen
    ) -> None:
        super().__init__()
        self.train_clips, self.heldout_clips = _read_clips(config)
        frames = int(config.segment_s * spec.frames_per_s)
        if frames < 1:
            raise DataError(
                f"tokenizer_training.segment_s={config.segment_s} is shorter than one frame, {spec.seconds(1)} s"
            )
        fewest = min(config.segments_at(0), config.segments_at(2**62))
        if fewest < mine.count:
            raise ConfigError(
                f"tokenizer_training.segments_per_step: {fewest} segments cannot be shared by {mine.count} processes; "
                "raise it, or start fewer"
            )
        self.recordings = Recordings(spec.sampling_rate_hz, config.cache_bytes, spec.num_audio_channels)
        self.text_tokenizer = build_text_tokenizer(config.semantic.text_tokenizer) if config.semantic.weight else None
        reader = None
        if self.text_tokenizer is not None:
            reader = TranscriptReader(self.text_tokenizer, config.semantic, spec.samples_per_frame)
        plan = SegmentPlan(frames * spec.samples_per_frame, config.segments_at, seed, config.gain_db, mine)
        self.sampler = SegmentSampler(self.train_clips, self.recordings, plan, reader, config.source_weights)
        every = max(1, len(self.heldout_clips) // max_validation_clips)
        self.validation_clips = self.heldout_clips[::every][:max_validation_clips]
        self._mine = mine

    @property
    def fingerprint(self) -> str:
        """Of everything in the manifest that decides which samples and transcripts a step sees."""
        lines = [
            json.dumps([clip.id, clip.sha256, clip.duration_s, clip.source, clip.text, clip.language, clip.extra])
            for clip in self.train_clips
        ]
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
        """Whole held-out waveforms (N,) or (2, N), one at a time; each process has its share of those that can be read.

        Raises:
            DataError: None can be read.
        """
        # All of them in every process, so that all agree on what there is to share.
        found = [(clip, self.recordings.find(clip)) for clip in self.validation_clips]
        readable = [wave for _, wave in found if wave is not None]
        if not readable:
            raise none_readable(self.validation_clips, self.recordings)
        clips = self._mine.share(readable)
        # A process without a batch would leave the others waiting; see `LitTokenizer.validation_step`.
        clips = clips or [torch.zeros(0)]
        return DataLoader(clips, batch_size=None)  # type: ignore[arg-type]


def none_readable(clips: Sequence[Utterance], recordings: Recordings) -> DataError:
    """The error where no held-out clip is left."""
    first = clips[0]
    return DataError(
        f"none of the {len(clips)} held-out recordings can be read; first: {first.id}: "
        f"{recordings.broken[first.audio]}; {REMEDY}"
    )


def _wordless(clip: Utterance) -> Utterance:
    return dataclasses.replace(clip, text="", extra={})


def _read_clips(config: TokenizerTrainingConfig) -> tuple[list[Utterance], list[Utterance]]:
    """Clips to train on and clips held out, of all manifests together and the sources that have a weight."""
    if config.manifest is None:
        raise DataError("tokenizer_training.manifest: is not set; make one with data_prep/01_manifest.py")
    paths = [config.manifest, *config.more_manifests]
    names = ", ".join(str(path) for path in paths)
    utterances = [utterance for path in paths for utterance in _read_one(path)]
    if config.source_weights:
        there = {utterance.source for utterance in utterances}
        if unknown_sources := sorted(config.source_weights.keys() - there):
            raise ConfigError(
                f"tokenizer_training.source_weights: no clip comes from {', '.join(unknown_sources)}; {names} has "
                f"{', '.join(sorted(there))}"
            )
        utterances = [utterance for utterance in utterances if utterance.source in config.source_weights]
    train = [utterance for utterance in utterances if utterance.split == TRAIN]
    heldout = [utterance for utterance in utterances if utterance.split == HELDOUT]
    for name, clips in ((TRAIN, train), (HELDOUT, heldout)):
        if not clips:
            raise DataError(f"{names}: no clip of split {name!r} among {len(utterances)}; make it again")
    unknown = next((clip for clip in train if clip.duration_s <= 0), None)
    if unknown is not None:
        raise DataError(f"{names}: {unknown.id} has no duration_s; segments are drawn in proportion to it")
    held = {key: clip.id for clip in heldout for key in _same_recording(clip)}
    both = next(((clip.id, held[key]) for clip in train for key in _same_recording(clip) if key in held), None)
    if both is not None:
        raise DataError(
            f"{names}: {both[0]} is trained on and, as {both[1]}, held out: the same recording; make the manifests "
            "with the same --heldout-frac, or leave one of them out"
        )
    return train, heldout


def _read_one(path: Path) -> list[Utterance]:
    if not path.is_file():
        raise DataError(
            f"{path} does not exist. To make it from the packaged speech:\n"
            f"  python data_prep/00_fetch_speech.py --root {path.parent}\n"
            f"  python data_prep/01_manifest.py --root {path.parent} --max-duration-s 60"
        )
    return read_manifest(path, needs_text=False)


def _same_recording(clip: Utterance) -> list[str]:
    return [str(Path(clip.audio).absolute()), *([clip.sha256] if clip.sha256 else [])]
