"""Streams of the tokenizer against the published implementation's offline results, and its streaming ones.

Sizes, rates, ids and chunk lengths all come from the fixture.
"""

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from moss.config.generation import Compatibility
from moss.tokenizer.cat import CatTokenizer
from moss.tokenizer.stream_state import positions_per_frame
from moss.tokenizer.streaming import DecoderStream, EncoderStream
from moss.tokenizer.streaming_lanes import DecoderLanes, EncoderLanes
from moss.tokenizer.transformer import Transformer

WAVE_TOLERANCE = 5e-5
LANE_TOLERANCE = 1e-5
CHUNKINGS = 4


def whole_wave(fixture: dict[str, Any]) -> Tensor:
    """The published sound of all codebooks."""
    return fixture["decoded"][max(fixture["decoded"])][0, 0]


def random_cuts(length: int, longest: int, seed: int) -> list[int]:
    """Where chunks of 0 to `longest` end."""
    generator = random.Random(seed)
    ends = [0]
    while ends[-1] < length:
        ends.append(min(length, ends[-1] + generator.randint(0, longest)))
    return ends[1:]


def context_frames(stack: torch.nn.ModuleList, positions: int) -> int:
    """The longest window of an encoder or decoder in frames, of which each has `positions` at the entrance."""
    counts = positions_per_frame(stack, positions)
    return max(
        math.ceil(stage.context / count)
        for stage, count in zip(stack, counts[:-1], strict=True)
        if isinstance(stage, Transformer)
    )


def pushed(stream: EncoderStream | DecoderStream, whole: Tensor, ends: list[int]) -> Tensor:
    """What comes out of a stream that is given `whole` in chunks along its first axis."""
    made, start = [], 0
    for end in ends:
        made.append(stream.push(whole[start:end]))
        start = end
    return torch.cat(made)


def test_the_fixture_outlasts_the_window(tokenizer: CatTokenizer, codes: Tensor) -> None:
    assert len(codes) > context_frames(tokenizer.encoder, tokenizer.model.frame_size)
    assert len(codes) > context_frames(tokenizer.decoder, 1)


@pytest.mark.parametrize("seed", range(CHUNKINGS))
def test_streamed_codes_are_the_published_ones(tokenizer: CatTokenizer, wave: Tensor, codes: Tensor, seed: int) -> None:
    stream = tokenizer.encoder_stream()
    longest = int(random.Random(seed).uniform(0.5, 5) * tokenizer.spec.samples_per_frame)
    made = pushed(stream, wave, random_cuts(len(wave), longest, seed))
    assert torch.equal(torch.cat((made, stream.finish())), codes)
    assert stream.num_samples == len(wave)


@pytest.mark.parametrize("seed", range(CHUNKINGS))
def test_streamed_sound_is_the_published_one(
    fixture: dict[str, Any], tokenizer: CatTokenizer, codes: Tensor, seed: int
) -> None:
    longest = random.Random(seed).choice([1, 3, 11])
    made = pushed(tokenizer.decoder_stream(), codes, random_cuts(len(codes), longest, seed))
    assert (made - whole_wave(fixture)).abs().max() <= WAVE_TOLERANCE


@pytest.mark.parametrize("seed", range(CHUNKINGS))
def test_streaming_is_offline_past_three_windows(tokenizer: CatTokenizer, wave: Tensor, seed: int) -> None:
    windows = max(context_frames(tokenizer.encoder, tokenizer.model.frame_size), context_frames(tokenizer.decoder, 1))
    times = math.ceil(3.5 * windows * tokenizer.spec.samples_per_frame / len(wave))
    # Neither loudness nor phase repeats, so that no part of it is mistaken for another.
    long = torch.cat([wave.roll(101 * i) * 0.8**i for i in range(times)])[: -7 - seed]
    stream = tokenizer.encoder_stream()
    longest = int(random.Random(seed).uniform(0.5, 9) * tokenizer.spec.samples_per_frame)
    made = pushed(stream, long, random_cuts(len(long), longest, seed))
    (offline,) = tokenizer.encode([long])
    assert torch.equal(torch.cat((made, stream.finish())), offline)
    assert len(offline) > 3 * windows
    sound = pushed(tokenizer.decoder_stream(), offline, random_cuts(len(offline), 1 + 4 * seed, seed))
    assert (sound - tokenizer.decode([offline])[0]).abs().max() <= WAVE_TOLERANCE


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_equal_pushes_give_the_published_offline_sound(
    fixture: dict[str, Any], tokenizer: CatTokenizer, codes: Tensor, size: int
) -> None:
    stream = tokenizer.decoder_stream()
    made = torch.cat([stream.push(piece) for piece in codes.split(size)])
    assert (made - whole_wave(fixture)).abs().max() <= WAVE_TOLERANCE


def test_the_published_streaming_is_reproduced_on_demand(
    fixture: dict[str, Any], tokenizer: CatTokenizer, codes: Tensor
) -> None:
    assert fixture["streaming_decoded_reference"]
    for size, expected in fixture["streaming_decoded_reference"].items():
        stream = tokenizer.decoder_stream(compatibility=Compatibility.reference)
        made = torch.cat([stream.push(piece) for piece in codes.split(int(size))])
        assert (made - expected[0, 0]).abs().max() <= WAVE_TOLERANCE, size
        # It is another function than the offline one, or the two could not be told apart here.
        assert (expected[0, 0] - whole_wave(fixture)).abs().max() > 10 * WAVE_TOLERANCE, size


def test_lanes_give_the_published_codes_and_sound(
    fixture: dict[str, Any], tokenizer: CatTokenizer, wave: Tensor, codes: Tensor
) -> None:
    """Two lanes, one of which starts late and pauses now and then."""
    frame, late = tokenizer.spec.samples_per_frame, len(codes) // 5
    encoding, decoding = EncoderLanes(tokenizer), DecoderLanes(tokenizer)
    first, second = (encoding.open(), decoding.open()), (encoding.open(), decoding.open())
    at, coded, waves = [0, 0], ([], []), ([], [])
    for turn in range(2 * len(codes) + late):
        moving = [at[0] < len(codes), at[1] < len(codes) and turn >= late and turn % 4 != 0]
        samples, pushed = {}, {}
        for i, (lane, moves) in enumerate(zip((first, second), moving, strict=True)):
            if moves:
                samples[lane[0]] = wave[at[i] * frame : (at[i] + 1) * frame]
                pushed[lane[1]] = codes[at[i] : at[i] + 1]
                at[i] += 1
        for lane, item in encoding.push(samples).items():
            coded[(first, second).index((lane, lane))].append(item)
        for lane, item in decoding.push(pushed).items():
            waves[(first, second).index((lane, lane))].append(item)
    single = tokenizer.decoder_stream()
    alone = torch.cat([single.push(piece) for piece in codes.split(1)])
    assert at == [len(codes)] * 2
    for i in range(2):
        assert torch.equal(torch.cat(coded[i]), codes)
        assert (torch.cat(waves[i]) - alone).abs().max() <= LANE_TOLERANCE
        assert (torch.cat(waves[i]) - whole_wave(fixture)).abs().max() <= WAVE_TOLERANCE
