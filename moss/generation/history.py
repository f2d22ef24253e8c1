"""What was spoken in this process, by id: one model's generation may be the reference or prefix of another's."""

import itertools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from moss.generation.speech import Speech
from moss.tokenizer.interface import AudioTokenizer

MOST = 1000
"""Generations that are remembered."""


class History:
    """The latest generations of all models; of two with one id, the newer one is meant.

    Only codes are kept: a tokenizer that nothing else uses any more is given up.

    Args:
        most: How many are kept.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._made: OrderedDict[str, tuple[Speech, Callable[[], AudioTokenizer | None]]] = OrderedDict()
        self._numbers = itertools.count(1)
        # Streams are made in threads of their own.
        self._lock = threading.Lock()

    def new_id(self) -> str:
        """A name for a generation that was given none."""
        return f"speech-{next(self._numbers):04d}"

    def add(self, speech: Speech) -> None:
        """Keep a generation; one that failed cannot be referred to."""
        if speech.error is not None:
            return
        # A copy, so that audio that the caller decodes is the caller's to keep.
        kept = replace(speech, tokenizer=None, tokenizer_fingerprint=speech.fingerprint)
        with self._lock:
            self._made[speech.id] = kept, _weakly(speech.tokenizer)
            self._made.move_to_end(speech.id)
            while len(self._made) > self._most:
                self._made.popitem(last=False)

    def find(self, name: str) -> Speech | None:
        """The newest generation of that id, with its tokenizer if that is still in use."""
        with self._lock:
            found = self._made.get(name)
        return None if found is None else replace(found[0], tokenizer=found[1]())


GENERATIONS = History()
"""The one that all models of a process share."""


def _weakly(tokenizer: AudioTokenizer | None) -> Callable[[], AudioTokenizer | None]:
    try:
        return (lambda: None) if tokenizer is None else weakref.ref(tokenizer)
    except TypeError:
        # A class with __slots__ has no room for weak references.
        return lambda: tokenizer
