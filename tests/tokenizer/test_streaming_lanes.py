"""Lanes: each gives what a stream of its own gives, and those in step run as one batch."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moss.errors import DataError
from moss.tokenizer import stream_state
from moss.tokenizer.cat import CatTokenizer
from moss.tokenizer.streaming_lanes import DecoderLanes, EncoderLanes
from tests.tokenizer.conftest import small_model, small_stereo_model
from tests.tokenizer.test_cat import noise

FRAME = 480
TOLERANCE = 1e-5
TOKENIZERS = {"mono": CatTokenizer(small_model()), "stereo": CatTokenizer(small_stereo_model())}


def sound(tokenizer: CatTokenizer, samples: int, seed: int) -> Tensor:
    channels = tokenizer.spec.num_audio_channels
    return noise(samples, seed) if channels == 1 else noise(channels * samples, seed).view(channels, -1)


STEPS = st.lists(
    st.tuples(st.sampled_from(["open", "close", "push", "push", "push", "push"]), st.integers(0, 2**20)),
    min_size=15,
    max_size=30,
)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(steps=STEPS)
def test_any_course_of_decoding_lanes(kind: str, steps: list[tuple[str, int]]) -> None:
    """Lanes open, pause, push different numbers of frames and close at random; single streams do the same."""
    tokenizer = TOKENIZERS[kind]
    lanes, singles = DecoderLanes(tokenizer), {}
    for what, seed in [("open", 0), ("open", 1), *steps]:
        generator = torch.Generator().manual_seed(seed)
        if what == "open":
            singles[lanes.open()] = tokenizer.decoder_stream()
        elif what == "close" and singles:
            lane = list(singles)[seed % len(singles)]
            lanes.close(lane)
            del singles[lane]
        else:
            # Half of the pushes are in step: as many frames for each of the lanes that take part.
            counts = torch.randint(0, 6, (len(singles),), generator=generator)
            counts = counts[:1].expand(len(singles)) if seed % 2 else counts
            chosen = torch.rand(len(singles), generator=generator) < 0.8
            chunks = {
                lane: torch.randint(0, 17, (int(counts[i]), 1 + seed % 4), generator=generator)
                for i, lane in enumerate(singles)
                if chosen[i]
            }
            made = lanes.push(chunks)
            assert list(made) == list(chunks)
            for lane, codes in chunks.items():
                expected = singles[lane].push(codes)
                assert made[lane].shape == expected.shape
                assert (made[lane] - expected).abs().sum() == 0 or (made[lane] - expected).abs().max() <= TOLERANCE
    assert lanes.lanes == tuple(singles)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("seed", range(4))
def test_encoding_lanes_that_start_pause_and_end_apart(kind: str, seed: int) -> None:
    tokenizer = TOKENIZERS[kind]
    generator = torch.Generator().manual_seed(seed)
    lengths = [35 * FRAME, 22 * FRAME + 5, 31 * FRAME - 1, 9 * FRAME + 100]
    waves = [sound(tokenizer, length, i) for i, length in enumerate(lengths)]
    lanes, names = EncoderLanes(tokenizer, 3), {}
    places, codes, turn = [0] * len(waves), {}, 0
    while any(place < length for place, length in zip(places, lengths, strict=True)):
        if turn % 3 == 0 and len(names) < len(waves):
            names[len(names)] = lanes.open()
        chunks = {}
        for i, lane in names.items():
            if places[i] < lengths[i] and torch.rand((), generator=generator) < 0.75:
                size = FRAME if turn % 2 else int(torch.randint(0, 4 * FRAME, (), generator=generator))
                chunks[lane] = waves[i][..., places[i] : places[i] + size]
                places[i] = min(places[i] + size, lengths[i])
        for lane, item in lanes.push(chunks).items():
            codes.setdefault(lane, []).append(item)
        turn += 1
    assert [lanes.num_samples(names[i]) for i in range(len(waves))] == lengths
    for lane, item in lanes.finish(lanes.lanes).items():
        codes[lane].append(item)
    assert lanes.lanes == ()
    for i, wave in enumerate(waves):
        assert torch.equal(torch.cat(codes[names[i]]), tokenizer.encode([wave], 3)[0]), i


def watched(tokenizer: CatTokenizer, name: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch size of every pass."""
    sizes: list[int] = []
    run: Callable[..., Tensor] = getattr(tokenizer.model, name)

    def watch(x: Tensor, stages: object) -> Tensor:
        sizes.append(len(x))
        return run(x, stages)

    monkeypatch.setattr(tokenizer.model, name, watch)
    return sizes


def test_lanes_in_step_are_one_batch(tokenizer: CatTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randint(0, 16, (30, 4), generator=torch.Generator().manual_seed(0))
    lanes = DecoderLanes(tokenizer)
    first = lanes.open()
    lanes.push({first: codes[:7]})
    second, third = lanes.open(), lanes.open()
    sizes = watched(tokenizer, "decode_hidden", monkeypatch)
    for frame in range(7, 30):
        lanes.push({lane: codes[frame : frame + 1] for lane in (third, first, second)})
    assert sizes == [3] * 23
    sizes.clear()
    lanes.push({first: codes[:2], second: codes[:1], third: codes[:2]})
    assert sorted(sizes) == [1, 2]


def test_encoding_lanes_in_step_are_one_batch(tokenizer: CatTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    lanes = EncoderLanes(tokenizer)
    opened = [lanes.open() for _ in range(4)]
    sizes = watched(tokenizer, "encode_hidden", monkeypatch)
    for i in range(5):
        lanes.push({lane: noise(FRAME, i) for lane in opened})
    lanes.push({lane: noise(5) for lane in opened})
    assert sizes == [4] * 5
    lanes.finish(opened)
    assert sizes == [4] * 6


def test_states_stay_joined_while_the_same_lanes_go_on(
    tokenizer: CatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    joins: list[int] = []
    join = stream_state.join
    monkeypatch.setattr(stream_state, "join", lambda stack, streams: joins.append(len(streams)) or join(stack, streams))
    lanes = DecoderLanes(tokenizer)
    opened = [lanes.open() for _ in range(3)]
    for _ in range(10):
        lanes.push({lane: torch.zeros(1, 4, dtype=torch.long) for lane in opened})
    assert joins == [3]
    lanes.push({opened[1]: torch.zeros(1, 4, dtype=torch.long)})
    for _ in range(4):
        lanes.push({lane: torch.zeros(1, 4, dtype=torch.long) for lane in opened})
    assert joins == [3, 3]


def test_a_paused_lane_is_not_written_to(tokenizer: CatTokenizer) -> None:
    codes = torch.randint(0, 16, (40, 4), generator=torch.Generator().manual_seed(1))
    lanes, single = DecoderLanes(tokenizer), tokenizer.decoder_stream()
    paused, other = lanes.open(), lanes.open()
    lanes.push({paused: codes[:15], other: codes[5:20]})
    single.push(codes[:15])
    for frame in range(25):
        lanes.push({other: codes[frame : frame + 1]})
    # Chunks before and after the pause have different lengths.
    made = lanes.push({paused: codes[15:18], other: codes[:3]})[paused]
    assert (made - single.push(codes[15:18])).abs().max() <= TOLERANCE


def test_long_pushes_run_in_pieces(tokenizer: CatTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    waves = [noise(12 * FRAME, i) for i in range(2)]
    expected = tokenizer.encode(waves)
    monkeypatch.setattr(tokenizer, "_frames_per_pass", 8)
    sizes = watched(tokenizer, "encode_hidden", monkeypatch)
    lanes = EncoderLanes(tokenizer)
    opened = [lanes.open(), lanes.open()]
    codes = lanes.push(dict(zip(opened, waves, strict=True)))
    assert sizes == [2, 2, 2]
    assert all(torch.equal(codes[lane], item) for lane, item in zip(opened, expected, strict=True))


def test_a_failing_push_moves_no_lane(tokenizer: CatTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randint(0, 16, (30, 4), generator=torch.Generator().manual_seed(2))
    lanes, singles = DecoderLanes(tokenizer), [tokenizer.decoder_stream() for _ in range(2)]
    opened = [lanes.open(), lanes.open()]
    lanes.push({lane: codes[:12] for lane in opened})
    for single in singles:
        single.push(codes[:12])
    chunks = {opened[0]: codes[12:14], opened[1]: codes[12:17]}
    calls: list[int] = []
    decode = tokenizer.model.decode_hidden

    def fail_at_second(x: Tensor, stages: object) -> Tensor:
        calls.append(len(x))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("full")
        return decode(x, stages)

    with monkeypatch.context() as patch:
        patch.setattr(tokenizer.model, "decode_hidden", fail_at_second)
        with pytest.raises(torch.OutOfMemoryError):
            lanes.push(chunks)
    made = lanes.push(chunks)
    for lane, single in zip(opened, singles, strict=True):
        assert (made[lane] - single.push(chunks[lane])).abs().max() <= TOLERANCE


def test_nothing_and_no_lanes(tokenizer: CatTokenizer) -> None:
    encoding, decoding = EncoderLanes(tokenizer), DecoderLanes(tokenizer)
    assert encoding.push({}) == decoding.push({}) == encoding.finish([]) == {}
    lane = encoding.open()
    assert encoding.push({lane: torch.zeros(0)})[lane].shape == (0, 4)
    assert encoding.finish([lane])[lane].shape == (0, 4)
    lane = decoding.open()
    assert decoding.push({lane: torch.zeros(0, 4, dtype=torch.long)})[lane].shape == (0,)


def test_a_lane_named_twice_ends_once(tokenizer: CatTokenizer) -> None:
    lanes = EncoderLanes(tokenizer)
    lane = lanes.open()
    lanes.push({lane: noise(100)})
    assert lanes.finish([lane, lane])[lane].shape == (1, 4)
    assert lanes.lanes == ()


def test_lane_numbers_are_used_once(tokenizer: CatTokenizer) -> None:
    lanes = EncoderLanes(tokenizer)
    assert [lanes.open(), lanes.open()] == [0, 1]
    lanes.close(1)
    assert lanes.open() == 2
    assert lanes.lanes == (0, 2)


CODES = torch.zeros(1, 4, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e, d: e.push({2: noise(1)}), "lane 2: is not open; open are 0, 1"),
        (lambda e, d: e.finish([0, 2]), "lane 2: is not open; open are 0, 1"),
        (lambda e, d: e.close(7), "lane 7: is not open; open are 0, 1"),
        (lambda e, d: e.num_samples(7), "lane 7: is not open; open are 0, 1"),
        (lambda e, d: d.push({0: CODES}), "lane 0: is not open; open are none"),
        (lambda e, d: d.close(0), "lane 0: is not open; open are none"),
        (lambda e, d: e.push({0: noise(1), 1: torch.full((3,), torch.inf)}), "lane 1: sample 0 is inf"),
        (lambda e, d: d.push({d.open(): CODES, d.open(): CODES + 17}), "lane 1: 17 at frame 0, codebook 0 is outside"),
    ],
)
def test_bad_pushes_are_named(
    tokenizer: CatTokenizer, call: Callable[[EncoderLanes, DecoderLanes], object], message: str
) -> None:
    encoding, decoding = EncoderLanes(tokenizer), DecoderLanes(tokenizer)
    encoding.open()
    encoding.open()
    with pytest.raises(DataError, match=message):
        call(encoding, decoding)
    assert encoding.lanes == (0, 1)
    assert encoding.num_samples(0) == 0


def test_codebook_counts_are_checked(tokenizer: CatTokenizer) -> None:
    with pytest.raises(DataError, match="num_codebooks: expected 1 to 4, got 0"):
        EncoderLanes(tokenizer, 0)
