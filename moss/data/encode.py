"""Turn recordings into codes with a tokenizer, any number at a time, and survive being stopped.

This package does not know the tokenizers (they are a sibling); it takes whatever has the three things of `Encoder`.
The result of every finished batch is on disk before the next one starts, so a kill costs one batch.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from moss.data.audio import audio_blocks, load_audio, loudness_gain, normalise_loudness
from moss.data.code_store import CodeStore, store_key
from moss.data.manifest import Utterance
from moss.data.progress import track
from moss.data.quarantine import FILE_NAME as QUARANTINE
from moss.data.quarantine import Quarantine
from moss.data.shard_index import TokenizerCard
from moss.data.workers import map_batches
from moss.errors import DataError
from moss.spec import TokenizerSpec

if TYPE_CHECKING:
    from torch import Tensor

_MAX_DEFAULT_WORKERS = 8


class Encoder(Protocol):
    """The part of an audio tokenizer that encoding needs."""

    @property
    def spec(self) -> TokenizerSpec:
        """Rate, hop, codebooks."""

    @property
    def fingerprint(self) -> str:
        """Names the weights and everything else that the codes depend on."""

    def encode(self, waves: "Sequence[Tensor]", num_codebooks: int | None = None) -> "list[Tensor]":
        """Float32 waves (samples,), or (2, samples) for a stereo tokenizer, to integer codes (frames, codebooks)."""


class Stream(Protocol):
    """One recording that is encoded part by part."""

    @property
    def num_samples(self) -> int:
        """Samples pushed so far, per audio channel."""

    def push(self, samples: "Tensor") -> "Tensor":
        """The codes (frames, codebooks) of all frames that these samples complete."""

    def finish(self) -> "Tensor":
        """The codes of what is left, padded with silence to a frame: one frame, or none."""


@runtime_checkable
class OpensStreams(Protocol):
    """What an encoder has besides, when recordings need not be held whole."""

    def encoder_stream(self, num_codebooks: int | None = None) -> Stream:
        """A new stream, whose codes are those of `encode`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeSettings:
    """How the work is cut up."""

    workers: int = 1
    """Processes; 1 encodes in this one, and so does a job of a single batch."""
    batch_size: int = 8
    max_bad_frac: float = 0.05
    stream_above_s: float = 120.0
    """Longer recordings are encoded as a stream, where the tokenizer has streams: the codes are the same, and the
    recording is never held whole."""


@dataclass(frozen=True, slots=True)
class _Job:
    id: str
    audio: str
    key: str
    max_channels: int | None
    is_levelled: bool
    duration_s: float


@dataclass(frozen=True, slots=True)
class _Encoded:
    job: _Job
    codes: npt.NDArray[np.integer[Any]] | None
    num_samples: int
    problem: str = ""


_Work = Callable[[Sequence[_Job]], list[_Encoded]]


@dataclass(frozen=True, slots=True)
class EncodeResult:
    """What was done: new clips, clips done before, bad ones, and utterances without a recording."""

    encoded: int
    kept: int
    quarantined: int
    without_recording: int


def default_workers(device: str) -> int:
    """One process per usable core (at most 8) on the CPU, where one thread each is faster than sharing; else one."""
    return min(len(os.sched_getaffinity(0)), _MAX_DEFAULT_WORKERS) if device == "cpu" else 1


def card_of(encoder: Encoder, name: str, num_codebooks: int | None = None) -> TokenizerCard:
    """Describe a tokenizer as the writer of a code folder.

    Raises:
        DataError: More codebooks wanted than it has, or fewer than one.
    """
    spec = encoder.spec
    stored = spec.num_codebooks if num_codebooks is None else num_codebooks
    if not 1 <= stored <= spec.num_codebooks:
        raise DataError(f"--num-codebooks {stored}: the tokenizer {name} has 1 to {spec.num_codebooks}")
    shape = dataclasses.asdict(dataclasses.replace(spec, num_codebooks=stored))
    return TokenizerCard(name=name, fingerprint=encoder.fingerprint, **shape)


def encode_utterances(
    utterances: Sequence[Utterance], store: CodeStore, make_encoder: Callable[[], Encoder], settings: EncodeSettings
) -> EncodeResult:
    """Encode what the store does not hold yet; bad recordings go to `quarantine.jsonl` in the store's folder.

    Args:
        utterances: Of a manifest; those without a recording or a hash are counted and left out. Clips of split
            "reference" are brought to the level of references first (`Utterance.is_levelled`).
        store: Where codes go.
        make_encoder: Builds the tokenizer; called in every worker, so it must be picklable when there are several.
        settings: Workers, batch size, tolerated fraction of bad recordings.

    Raises:
        DataError: Too many bad recordings; a full disk; settings below one.
    """
    if settings.workers < 1 or settings.batch_size < 1:
        raise DataError(f"--workers {settings.workers} and --batch-size {settings.batch_size} must be at least 1")
    store.remove_leftovers()
    with_audio = {store_key(u): u for u in utterances if u.audio and u.sha256}
    jobs = [_job(u) for key, u in with_audio.items() if not store.is_done(key)]
    quarantine = Quarantine(store.folder / QUARANTINE, "encode")
    batches = [jobs[start : start + settings.batch_size] for start in range(0, len(jobs), settings.batch_size)]
    encoded = 0
    work = partial(_make_work, make_encoder, store.card, settings.stream_above_s)
    for batch in track(map_batches(batches, work, settings.workers, "encoding"), "encoding", len(batches)):
        for done in batch:
            if done.codes is None:
                quarantine.add(done.job.id, done.job.audio, done.problem)
            else:
                store.put(done.job.key, done.codes, done.num_samples)
                encoded += 1
    quarantine.close(len(with_audio), settings.max_bad_frac)
    return EncodeResult(
        encoded=encoded,
        kept=len(with_audio) - len(jobs),
        quarantined=len(quarantine.rejected),
        without_recording=sum(not (u.audio and u.sha256) for u in utterances),
    )


def _job(utterance: Utterance) -> _Job:
    return _Job(
        utterance.id,
        utterance.audio,
        store_key(utterance),
        utterance.max_channels,
        utterance.is_levelled,
        utterance.duration_s,
    )


def _make_work(make_encoder: Callable[[], Encoder], card: TokenizerCard, stream_above_s: float) -> _Work:
    return partial(_encode_jobs, make_encoder(), card=card, stream_above_s=stream_above_s)


def _encode_jobs(encoder: Encoder, batch: Sequence[_Job], card: TokenizerCard, stream_above_s: float) -> list[_Encoded]:
    """Long recordings one by one as streams, where the tokenizer has them; the others together."""
    if not isinstance(encoder, OpensStreams):
        return _encode_batch(encoder, batch, card)
    long = [job for job in batch if job.duration_s > stream_above_s]
    short = [job for job in batch if job.duration_s <= stream_above_s]
    found = [_encode_stream(encoder, job, card) for job in long]
    return found + (_encode_batch(encoder, short, card) if short else [])


def _encode_stream(encoder: OpensStreams, job: _Job, card: TokenizerCard) -> _Encoded:
    """Encode a recording part by part, in memory that does not grow with its length (but for its codes)."""
    try:
        blocks = partial(
            audio_blocks,
            job.audio,
            card.sampling_rate_hz,
            audio_channels=card.num_audio_channels,
            max_channels=job.max_channels,
        )
        gain = _gain(blocks()) if job.is_levelled else 1.0
        stream = encoder.encoder_stream(card.num_codebooks)
        codes = [stream.push(block if gain == 1.0 else block * gain).cpu().numpy() for block in blocks()]
        num_samples = stream.num_samples
        codes.append(stream.finish().cpu().numpy())
    except DataError as error:
        return _Encoded(job, None, 0, str(error))
    return _Encoded(job, np.concatenate(codes), num_samples)


def _gain(blocks: "Iterator[Tensor]") -> float:
    """The gain that brings a recording to the level of references."""
    total, count = 0.0, 0
    for block in blocks:
        total += float(block.double().square().sum())
        count += block.numel()
    return loudness_gain((total / count) ** 0.5)


def _encode_batch(encoder: Encoder, batch: Sequence[_Job], card: TokenizerCard) -> list[_Encoded]:
    """Encode the recordings that load; where a whole batch fails, find the bad one by encoding them one by one."""
    loaded: list[tuple[_Job, Tensor]] = []
    results = []
    for job in batch:
        try:
            wave = load_audio(
                job.audio,
                card.sampling_rate_hz,
                audio_channels=card.num_audio_channels,
                max_channels=job.max_channels,
            )
            loaded.append((job, normalise_loudness(wave) if job.is_levelled else wave))
        except DataError as error:
            results.append(_Encoded(job, None, 0, str(error)))
    if not loaded:
        return results
    try:
        codes = encoder.encode([wave for _, wave in loaded], card.num_codebooks)
    except DataError as error:
        if len(loaded) == 1:
            return [*results, _Encoded(loaded[0][0], None, 0, str(error))]
        return results + [one for job, _ in loaded for one in _encode_batch(encoder, [job], card)]
    return results + [
        _Encoded(job, found.cpu().numpy(), wave.shape[-1]) for (job, wave), found in zip(loaded, codes, strict=True)
    ]
