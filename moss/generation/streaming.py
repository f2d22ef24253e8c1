"""Frames of one request while it is being made: the decode loop runs in a thread, chunks come out of a queue."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from moss.generation.loop import OnFrames, ShouldStop
from moss.generation.speech import SpeechChunk
from moss.tokenizer.interface import AudioTokenizer, StreamingTokenizer, can_stream


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


class Sound(Protocol):
    """Frames that arrive one chunk after the other, as sound."""

    def continued(self, codes: Tensor, future: Tensor | None = None) -> Tensor:
        """The samples of the next frames, shape (samples,), or (2, samples) for a stereo tokenizer.

        Args:
            codes: Shape (frames, codebooks), the same codebooks in every chunk.
            future: Frames behind them that are known already; they are given again later.
        """
        ...


class StreamedSound:
    """Through the tokenizer's own decoder stream: exact, and no frame is decoded twice."""

    def __init__(self, tokenizer: StreamingTokenizer, given: Tensor | None) -> None:
        """Stand behind the `given` frames (frames, codebooks), whose sound is not given out."""
        self._stream, self._given = tokenizer.decoder_stream(), given

    def continued(self, codes: Tensor, future: Tensor | None = None) -> Tensor:
        """See `Sound`; the tokenizer is causal and needs no future."""
        if self._given is not None:
            # A prefix has all codebooks of the model, frames only as many as are spoken.
            self._stream.push(self._given[:, : codes.shape[1]])
            self._given = None
        return self._stream.push(codes)


class WindowedSound:
    """Decodes each chunk once more together with the frames around it, for tokenizers that decode whole clips only.

    Args:
        tokenizer: Decodes.
        given: Frames before the first one, shape (frames, codebooks); their sound is not given out.
        past_frames: Earlier frames that are decoded along at most; None takes all.
    """

    def __init__(self, tokenizer: AudioTokenizer, given: Tensor | None, past_frames: int | None) -> None:
        self._tokenizer, self._past_frames = tokenizer, past_frames
        self._past = given

    def continued(self, codes: Tensor, future: Tensor | None = None) -> Tensor:
        """See `Sound`."""
        past = codes[:0] if self._past is None else self._past[:, : codes.shape[1]]
        if self._past_frames is not None:
            past = past[max(0, len(past) - self._past_frames) :]
        known = torch.cat([past, codes])
        wave = self._tokenizer.decode([known if future is None else torch.cat([known, future])])[0]
        self._past = known
        step = self._tokenizer.spec.samples_per_frame
        return wave[..., len(past) * step : len(known) * step]


def open_sound(tokenizer: AudioTokenizer, given: Tensor | None, past_frames: int | None) -> Sound:
    """Sound of frames behind `given` (frames, codebooks), in the best way that the tokenizer has.

    Args:
        tokenizer: Turns codes into sound.
        given: Frames that stand before the first one; not given out.
        past_frames: See `WindowedSound`; of no account with a `StreamingTokenizer`.
    """
    if can_stream(tokenizer):
        return StreamedSound(tokenizer, given)
    return WindowedSound(tokenizer, given, past_frames)


class Voicing:
    """Gives growing sequences of codes their sound, where there is a tokenizer.

    Args:
        tokenizer: Turns codes into sound; None leaves chunks without audio.
        given: Frames that stand before the first one, shape (frames, codebooks); not given out.
        past_frames: How many earlier frames a tokenizer that cannot stream decodes along with new ones; None all.
    """

    def __init__(self, tokenizer: AudioTokenizer | None, given: Tensor | None, past_frames: int | None) -> None:
        self._sound = None if tokenizer is None else open_sound(tokenizer, given, past_frames)

    def voice(self, codes: Tensor) -> SpeechChunk:
        """The chunk of the next frames, shape (frames, codebooks)."""
        return SpeechChunk(codes=codes, audio=None if self._sound is None else self._sound.continued(codes))
