"""Frames of one request while it is being made: the decode loop runs in a thread, chunks come out of a queue."""

import math
import queue
import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from moss.config.tokenizer import CatConfig, TransformerStage
from moss.generation.loop import OnFrames, ShouldStop
from moss.generation.speech import SpeechChunk
from moss.tokenizer.interface import AudioTokenizer

PAST_FRAMES = 125
"""Earlier frames that are decoded along with a new one at most, unless a number is given: 10 s of 12.5 a second, what
one layer of the published tokenizers sees. More would make every frame of a long turn slower than the one before."""


def default_past_frames(tokenizer: AudioTokenizer) -> int:
    """How many earlier frames to decode along with new ones.

    All that a Cat tokenizer can see where these are at most `PAST_FRAMES`, which is exact; else `PAST_FRAMES`: the
    published tokenizers see further through their many layers, others do not say how far.
    """
    config = getattr(getattr(tokenizer, "model", None), "config", None)
    if not isinstance(config, CatConfig):
        return PAST_FRAMES
    seen_s = sum(s.num_layers * s.context_s for s in config.decoder_stages() if isinstance(s, TransformerStage))
    return min(PAST_FRAMES, math.ceil(seen_s * tokenizer.spec.frames_per_s))


class FrameStream:
    """Runs a decode loop in a thread of its own and hands its frames over.

    Args:
        run: The loop; is given `on_frames` and `should_stop`, and may return or raise anything.
    """

    def __init__(self, run: Callable[[OnFrames, ShouldStop], None]) -> None:
        self._run = run
        self._stop = threading.Event()
        self._queue: queue.SimpleQueue[Tensor | BaseException | None] = queue.SimpleQueue()

    def chunks(self, num_frames: int) -> Iterator[Tensor]:
        """Codes (frames, codebooks), `num_frames` at a time as soon as they exist; the last chunk may be shorter.

        What the loop raises is raised here. When the iterator is closed early, the loop ends at its next frame.
        """
        thread = threading.Thread(target=self._work, name="speech stream", daemon=True)
        thread.start()
        waiting: list[Tensor] = []
        held = 0
        try:
            while True:
                item = self._queue.get()
                if isinstance(item, BaseException):
                    raise item
                if item is not None:
                    waiting.append(item)
                    held += len(item)
                while held >= num_frames or (item is None and held):
                    joined = torch.cat(waiting)
                    yield joined[:num_frames]
                    waiting, held = [joined[num_frames:]], max(0, held - num_frames)
                if item is None:
                    return
        finally:
            self._stop.set()
            thread.join()

    def _work(self) -> None:
        try:
            self._run(lambda _, codes: self._queue.put(codes.detach().cpu()), self._stop.is_set)
        # It belongs to the thread that reads.
        except BaseException as error:
            self._queue.put(error)
        else:
            self._queue.put(None)


class Voicing:
    """Decodes a growing sequence of codes and gives out the samples that are new.

    Args:
        tokenizer: Turns codes into sound; None leaves chunks without audio.
        given: Frames that stand before the first one, shape (frames, codebooks); not given out.
        past_frames: How many earlier frames are decoded along with new ones; None decodes all.
    """

    def __init__(self, tokenizer: AudioTokenizer | None, given: Tensor | None, past_frames: int | None) -> None:
        self._tokenizer, self._past_frames = tokenizer, past_frames
        self._codes = given

    def voice(self, codes: Tensor) -> SpeechChunk:
        """The chunk of the next frames, shape (frames, codebooks)."""
        if self._tokenizer is None:
            return SpeechChunk(codes=codes, audio=None)
        # A prefix has all codebooks of the model, frames only as many as are spoken.
        past = codes[:0] if self._codes is None else self._codes[:, : codes.shape[1]]
        if self._past_frames is not None:
            past = past[max(0, len(past) - self._past_frames) :]
        wave = self._tokenizer.decode([torch.cat([past, codes])])[0]
        self._codes = codes if self._codes is None else torch.cat([self._codes[:, : codes.shape[1]], codes])
        step = self._tokenizer.spec.samples_per_frame
        return SpeechChunk(codes=codes, audio=wave[..., len(past) * step : (len(past) + len(codes)) * step])
