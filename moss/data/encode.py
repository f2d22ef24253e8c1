"""Turn recordings into codes with a tokenizer, any number at a time, and survive being stopped.

This package does not know the tokenizers (they are a sibling); it takes whatever has the three things of `Encoder`.
The result of every finished batch is on disk before the next one starts, so a kill costs one batch.
"""

import dataclasses
import itertools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from moss.data.audio import load_audio, normalise_loudness
from moss.data.code_store import CodeStore, store_key
from moss.data.manifest import Utterance
from moss.data.progress import track
from moss.data.quarantine import FILE_NAME as QUARANTINE
from moss.data.quarantine import Quarantine
from moss.data.shard_index import TokenizerCard
from moss.errors import DataError
from moss.spec import TokenizerSpec

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from torch import Tensor

logger = logging.getLogger(__name__)

_PENDING_PER_WORKER = 4
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
        """1-D float32 waves at the tokenizer's rate to integer codes (frames, codebooks)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeSettings:
    """How the work is cut up."""

    workers: int = 1
    """Processes; 1 encodes in this one, and so does a job of a single batch."""
    batch_size: int = 8
    max_bad_frac: float = 0.05


@dataclass(frozen=True, slots=True)
class _Job:
    id: str
    audio: str
    key: str
    max_channels: int | None
    is_levelled: bool


@dataclass(frozen=True, slots=True)
class _Encoded:
    job: _Job
    codes: npt.NDArray[np.integer[Any]] | None
    num_samples: int
    problem: str = ""


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
    for batch in track(
        _run(batches, store.card, make_encoder, min(settings.workers, len(batches))), "encoding", len(batches)
    ):
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
    # A recording with more channels is in the manifest only because the user accepted the mean of its channels.
    max_channels = None if "downmixed_channels" in utterance.extra else 2
    return _Job(utterance.id, utterance.audio, store_key(utterance), max_channels, utterance.is_levelled)


def _run(
    batches: Sequence[Sequence[_Job]], card: TokenizerCard, make_encoder: Callable[[], Encoder], workers: int
) -> Iterator[list[_Encoded]]:
    if not batches:
        return
    if workers == 1:
        encoder = make_encoder()
        for batch in batches:
            yield _encode_batch(encoder, batch, card)
        return
    yield from _run_in_processes(batches, card, make_encoder, workers)


def _run_in_processes(
    batches: Sequence[Sequence[_Job]], card: TokenizerCard, make_encoder: Callable[[], Encoder], workers: int
) -> Iterator[list[_Encoded]]:
    context = get_context("spawn")
    # Workers hold the reading end: it tells them to stop at once when this process closes the other end, or is killed.
    lifeline, held = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (make_encoder, card, workers, lifeline))
    waiting = iter(batches)
    ahead = workers * _PENDING_PER_WORKER
    running: set[Future[list[_Encoded]]] = set()
    try:
        with _ignored_interrupt():
            running = {pool.submit(_encode_in_worker, batch) for batch in itertools.islice(waiting, ahead)}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(_encode_in_worker, batch) for batch in itertools.islice(waiting, len(finished))}
            for future in finished:
                yield future.result()
        pool.shutdown()
    except BrokenProcessPool as error:
        raise DataError(
            "an encoding process died, perhaps for want of memory; start again with fewer --workers or a smaller "
            "--batch-size: finished work is kept"
        ) from error
    finally:
        held.close()
        pool.shutdown(cancel_futures=True)
        lifeline.close()


@contextmanager
def _ignored_interrupt() -> Iterator[None]:
    """While workers start: they inherit the setting, so that Ctrl-C stops this process only, which stops them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_worker: tuple[Encoder, TokenizerCard] | None = None


def _start_worker(
    make_encoder: Callable[[], Encoder], card: TokenizerCard, workers: int, lifeline: "Connection[Any, Any]"
) -> None:
    import torch

    global _worker
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    _worker = (make_encoder(), card)


def _die_with_parent(lifeline: "Connection[Any, Any]") -> None:
    """Nothing is ever sent: the wait ends when the other end is closed."""
    lifeline.poll(None)
    os._exit(1)


def _encode_in_worker(batch: Sequence[_Job]) -> list[_Encoded]:
    assert _worker is not None, "the pool's initializer builds the encoder"
    return _encode_batch(_worker[0], batch, _worker[1])


def _encode_batch(encoder: Encoder, batch: Sequence[_Job], card: TokenizerCard) -> list[_Encoded]:
    """Encode the recordings that load; where a whole batch fails, find the bad one by encoding them one by one."""
    loaded: list[tuple[_Job, Tensor]] = []
    results = []
    for job in batch:
        try:
            wave = load_audio(job.audio, card.sampling_rate_hz, max_channels=job.max_channels)
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
        _Encoded(job, found.cpu().numpy(), wave.shape[0]) for (job, wave), found in zip(loaded, codes, strict=True)
    ]
