"""Frames leave the decode loop while it runs; errors and ends reach the reader."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moss.errors import GenerationError
from moss.generation.streaming import FrameStream, StreamedSound, Voicing, WindowedSound, open_sound
from tests.generation.toy import CausalTokenizer, small_cat

CODES = torch.randint(0, 16, (11, 4), generator=torch.Generator().manual_seed(0))


def frame_by_frame(on_frames: Callable[[int, Tensor], None], _: object) -> None:
    for frame in CODES:
        on_frames(0, frame[None])


@pytest.mark.parametrize(("size", "lengths"), [(1, [1] * 11), (4, [4, 4, 3]), (11, [11]), (50, [11])])
def test_chunks_hold_every_frame_once(size: int, lengths: list[int]) -> None:
    chunks = list(FrameStream(frame_by_frame).chunks(size))
    assert [len(chunk) for chunk in chunks] == lengths
    assert torch.equal(torch.cat(chunks), CODES)
    at_once = list(FrameStream(lambda on_frames, _: on_frames(0, CODES)).chunks(size))
    assert [len(chunk) for chunk in at_once] == lengths


def test_the_first_chunk_comes_before_the_loop_ends() -> None:
    read = threading.Event()

    def run(on_frames: Callable[[int, Tensor], None], _: object) -> None:
        on_frames(0, CODES[:2])
        assert read.wait(10), "the reader got nothing while the loop was running"
        on_frames(0, CODES[2:])

    chunks = FrameStream(run).chunks(2)
    assert torch.equal(next(chunks), CODES[:2])
    read.set()
    assert torch.equal(torch.cat(list(chunks)), CODES[2:])


def test_a_reader_that_leaves_ends_the_loop() -> None:
    ended = threading.Event()

    def run(on_frames: Callable[[int, Tensor], None], should_stop: Callable[[], bool]) -> None:
        while not should_stop():
            on_frames(0, CODES[:1])
        ended.set()

    chunks = FrameStream(run).chunks(1)
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert ended.is_set()


def test_an_error_of_the_loop_is_the_readers() -> None:
    def run(on_frames: Callable[[int, Tensor], None], _: object) -> None:
        on_frames(0, CODES[:3])
        raise GenerationError("no room")

    chunks = FrameStream(run).chunks(3)
    assert torch.equal(next(chunks), CODES[:3])
    with pytest.raises(GenerationError, match="no room"):
        next(chunks)


@pytest.mark.parametrize("past_frames", [None, 1])
@pytest.mark.parametrize("num_given", [0, 4])
def test_sound_of_chunks_is_that_of_the_whole(past_frames: int | None, num_given: int) -> None:
    tokenizer = CausalTokenizer()
    voicing = Voicing(tokenizer, CODES[:num_given] if num_given else None, past_frames)
    made = [voicing.voice(chunk) for chunk in CODES[num_given:].split(3)]
    whole = tokenizer.decode([CODES])[0][num_given * tokenizer.spec.samples_per_frame :]
    assert torch.equal(torch.cat([chunk.audio for chunk in made if chunk.audio is not None]), whole)
    # This tokenizer hears one frame back: without any, chunks begin without their echo.
    deaf = Voicing(tokenizer, None, 0)
    assert not torch.equal(torch.cat([c.audio for c in map(deaf.voice, CODES.split(3)) if c.audio is not None]), whole)


def test_known_future_is_heard_and_not_given_out() -> None:
    class Anticipating(CausalTokenizer):
        def decode(self, codes, num_samples=None):
            """Each frame is as loud as the one behind it."""
            return super().decode([torch.cat([part[1:], part[-1:]]) for part in codes])

    tokenizer = Anticipating()
    sound = open_sound(tokenizer, None, None)
    waves = [sound.continued(CODES[i : i + 1], CODES[i + 1 : i + 2] if i < 10 else None) for i in range(11)]
    assert torch.equal(torch.cat(waves), tokenizer.decode([CODES])[0])


def test_tokenizers_that_stream_are_streamed() -> None:
    assert isinstance(open_sound(small_cat(), None, 3), StreamedSound)
    assert isinstance(open_sound(CausalTokenizer(), None, 3), WindowedSound)


@pytest.mark.parametrize("audio_channels", [1, 2])
@pytest.mark.parametrize("num_given", [0, 7])
@pytest.mark.parametrize("size", [1, 5])
def test_a_stream_is_the_whole_however_far_the_tokenizer_sees(audio_channels: int, num_given: int, size: int) -> None:
    # 60 frames of 0.05 s are several times what all layers together see.
    tokenizer = small_cat(audio_channels=audio_channels)
    codes = torch.randint(0, 16, (60, 3), generator=torch.Generator().manual_seed(1))
    # A prefix may have more codebooks than are spoken.
    given = torch.cat([codes[:num_given], codes[:num_given, :1]], dim=1) if num_given else None
    voicing = Voicing(tokenizer, given, past_frames=0)
    chunks = [voicing.voice(chunk).audio for chunk in codes[num_given:].split(size)]
    made = torch.cat([chunk for chunk in chunks if chunk is not None], dim=-1)
    whole = tokenizer.decode([codes])[0][..., num_given * tokenizer.spec.samples_per_frame :]
    samples = (60 - num_given) * 20
    assert made.shape == whole.shape == ((samples,) if audio_channels == 1 else (2, samples))
    assert torch.allclose(made, whole, rtol=0, atol=5e-5)
    assert whole.abs().max() > 0.01


def test_the_past_reaches_further_than_a_window_would() -> None:
    tokenizer = small_cat(context_s=1.0)
    codes = torch.randint(0, 16, (60, 4), generator=torch.Generator().manual_seed(1))
    whole = tokenizer.decode([codes])[0][-20:]
    streamed = StreamedSound(tokenizer, codes[:-1]).continued(codes[-1:])
    windowed = WindowedSound(tokenizer, codes[:-1], 20).continued(codes[-1:])
    assert torch.allclose(streamed, whole, rtol=0, atol=5e-5)
    assert not torch.allclose(windowed, whole, rtol=0, atol=5e-4)


def test_without_a_tokenizer_chunks_are_codes() -> None:
    chunk = Voicing(None, None, None).voice(CODES)
    assert chunk.audio is None
    assert torch.equal(chunk.codes, CODES)
