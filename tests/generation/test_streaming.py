"""Frames leave the decode loop while it runs; errors and ends reach the reader."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moss.config.schema import build
from moss.config.tokenizer import CatConfig
from moss.errors import GenerationError
from moss.generation.streaming import PAST_FRAMES, FrameStream, Voicing, default_past_frames
from moss.tokenizer.cat import CatModel, CatTokenizer
from tests.generation.toy import CausalTokenizer

CODES = torch.randint(0, 16, (11, 4), generator=torch.Generator().manual_seed(0))


def cat(context_s: float) -> CatTokenizer:
    """A network of a few hundred values, 20 frames a second."""
    stage = {"kind": "transformer", "hidden_size": 8, "num_layers": 2, "num_heads": 2, "intermediate_size": 8}
    stage |= {"context_s": context_s, "layer_scale_init": 1.0}
    settings = {
        "kind": "cat",
        "sampling_rate_hz": 400,
        "samples_per_frame": 20,
        "encoder": [
            {"kind": "patch", "patch_size": 10},
            stage | {"input_size": 10, "output_size": 4},
            {"kind": "patch", "patch_size": 2},
            stage | {"input_size": 8, "output_size": 6},
        ],
        "quantizer": {"input_size": 6, "residual_size": 4, "output_size": 6, "num_codebooks": 4, "code_size": 4}
        | {"codebook_size": 16},
    }
    torch.manual_seed(0)
    return CatTokenizer(CatModel(build(CatConfig, settings)))


def test_a_tokenizer_that_sees_a_little_is_decoded_exactly() -> None:
    tokenizer = cat(0.1)
    # Two stages of two layers of 0.1 s.
    past = default_past_frames(tokenizer)
    assert past == 8
    codes = torch.randint(0, 16, (30, 4))
    whole, step = tokenizer.decode([codes])[0], tokenizer.spec.samples_per_frame
    for frame in (9, 20, 29):
        part = tokenizer.decode([codes[frame - past : frame + 1]])[0]
        assert torch.allclose(part[-step:], whole[frame * step : (frame + 1) * step], atol=1e-5)
    # It does see more than a single frame.
    assert not torch.allclose(tokenizer.decode([codes[29:]])[0], whole[-step:], atol=1e-5)


def test_others_are_decoded_with_ten_seconds() -> None:
    assert default_past_frames(cat(10.0)) == PAST_FRAMES == 125
    assert default_past_frames(CausalTokenizer()) == 125


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


def test_without_a_tokenizer_chunks_are_codes() -> None:
    chunk = Voicing(None, None, None).voice(CODES)
    assert chunk.audio is None
    assert torch.equal(chunk.codes, CODES)
