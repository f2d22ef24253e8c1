"""Work on many batches in this process or in several, and stop all of them at once when this one ends.

Workers are started afresh (spawn), each makes what it needs once, and results come in the order they are finished.
"""

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, TypeVar

from moss.errors import DataError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

BatchT = TypeVar("BatchT")
ResultT = TypeVar("ResultT")

_PENDING_PER_WORKER = 4


def map_batches(
    batches: Sequence[BatchT], make_work: Callable[[], Callable[[BatchT], ResultT]], workers: int, what: str
) -> Iterator[ResultT]:
    """The results of all batches; with several workers, in the order they are finished.

    Args:
        batches: What each call gets; picklable when there are several workers.
        make_work: Makes the function that does the work, called once in each process; picklable likewise.
        workers: Processes; 1 works in this one, and so does a job of a single batch.
        what: Names the processes in a message ("encoding").

    Raises:
        DataError: A process died.
    """
    if not batches:
        return
    workers = min(workers, len(batches))
    if workers == 1:
        work = make_work()
        for batch in batches:
            yield work(batch)
        return
    context = get_context("spawn")
    # Workers hold the reading end: it tells them to stop at once when this process closes the other end, or is killed.
    lifeline, held = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (make_work, workers, lifeline))
    waiting = iter(batches)
    running: set[Future[Any]] = set()
    try:
        with _ignored_interrupt():
            running = {pool.submit(_work, batch) for batch in itertools.islice(waiting, workers * _PENDING_PER_WORKER)}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(_work, batch) for batch in itertools.islice(waiting, len(finished))}
            for future in finished:
                yield future.result()
        pool.shutdown()
    except BrokenProcessPool as error:
        article = "an" if what[0] in "aeiou" else "a"
        raise DataError(
            f"{article} {what} process died, perhaps for want of memory; start again with fewer --workers or a smaller "
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


_worker: Callable[[Any], Any] | None = None


def _start_worker(
    make_work: Callable[[], Callable[[Any], Any]], workers: int, lifeline: "Connection[Any, Any]"
) -> None:
    import torch

    global _worker
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    _worker = make_work()


def _die_with_parent(lifeline: "Connection[Any, Any]") -> None:
    """Nothing is ever sent: the wait ends when the other end is closed."""
    lifeline.poll(None)
    os._exit(1)


def _work(batch: Any) -> Any:
    assert _worker is not None, "the pool's initializer makes the work"
    return _worker(batch)
