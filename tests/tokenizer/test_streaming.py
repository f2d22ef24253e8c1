"""Streams: any chunking gives what one call gives; states are saved and refused; threads share one tokenizer."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from moss.config.generation import Compatibility
from moss.config.tokenizer import Part
from moss.errors import CheckpointError, ConfigError, DataError
from moss.tokenizer.cat import CatModel, CatTokenizer
from moss.tokenizer.streaming import DecoderStream, EncoderStream
from tests.tokenizer.conftest import small_model, small_stereo_model
from tests.tokenizer.test_cat import noise

FRAME = 480
FRAMES = 41
"""Four windows of 10 frames and one more."""
WAVE_TOLERANCE = 5e-5
TOKENIZERS = {"mono": CatTokenizer(small_model()), "stereo": CatTokenizer(small_stereo_model())}


def sound(tokenizer: CatTokenizer, samples: int, seed: int = 0) -> Tensor:
    channels = tokenizer.spec.num_audio_channels
    return noise(samples, seed) if channels == 1 else noise(channels * samples, seed).view(channels, -1)


def cut(whole: Tensor, sizes: list[int], axis: int) -> list[Tensor]:
    """Chunks of the given sizes, over and over, until nothing is left."""
    chunks, start, i = [], 0, 0
    while start < whole.shape[axis]:
        size = min(sizes[i % len(sizes)], whole.shape[axis] - start)
        chunks.append(whole.narrow(axis, start, size))
        start, i = start + size, i + 1
    return chunks


def run_encoder(stream: EncoderStream, chunks: list[Tensor]) -> Tensor:
    return torch.cat([stream.push(chunk) for chunk in chunks] + [stream.finish()])


def run_decoder(stream: DecoderStream, chunks: list[Tensor]) -> Tensor:
    return torch.cat([stream.push(chunk) for chunk in chunks], -1)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.one_of(st.integers(0, 2 * FRAME), st.integers(0, 30 * FRAME)), min_size=1, max_size=6).filter(
        lambda sizes: sum(sizes) > 400
    ),
    missing=st.integers(0, FRAME - 1),
)
def test_any_chunking_gives_the_codes_of_the_whole(kind: str, sizes: list[int], missing: int) -> None:
    tokenizer = TOKENIZERS[kind]
    wave = sound(tokenizer, FRAMES * FRAME - missing)
    stream = tokenizer.encoder_stream()
    assert torch.equal(run_encoder(stream, cut(wave, sizes, -1)), tokenizer.encode([wave])[0])
    assert (stream.num_samples, stream.num_frames) == (wave.shape[-1], FRAMES)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(0, 25), min_size=1, max_size=6).filter(any))
def test_any_chunking_gives_the_sound_of_the_whole(kind: str, sizes: list[int]) -> None:
    tokenizer = TOKENIZERS[kind]
    codes = tokenizer.encode([sound(tokenizer, FRAMES * FRAME)])[0]
    stream = tokenizer.decoder_stream()
    pieces = cut(codes, sizes, 0)
    waves = [stream.push(piece) for piece in pieces]
    assert [wave.shape[-1] for wave in waves] == [len(piece) * FRAME for piece in pieces]
    whole = tokenizer.decode([codes])[0]
    assert whole.abs().max() > 1e-3
    assert (torch.cat(waves, -1) - whole).abs().max() <= WAVE_TOLERANCE
    assert stream.num_frames == FRAMES


def test_the_window_is_left_behind() -> None:
    """What the property tests are about: without the past, codes and sound are others."""
    tokenizer = TOKENIZERS["mono"]
    wave = sound(tokenizer, FRAMES * FRAME)
    codes = tokenizer.encode([wave])[0]
    assert not torch.equal(tokenizer.encode([wave[30 * FRAME :]])[0], codes[30:])
    late = tokenizer.decode([codes[30:]])[0]
    assert (late - tokenizer.decode([codes])[0][30 * FRAME :]).abs().max() > 100 * WAVE_TOLERANCE


def test_samples_short_of_a_frame_wait(tokenizer: CatTokenizer) -> None:
    stream = tokenizer.encoder_stream(2)
    assert stream.push(noise(FRAME - 1)).shape == (0, 2)
    assert stream.push(torch.zeros(0)).shape == (0, 2)
    assert (stream.num_samples, stream.num_frames) == (FRAME - 1, 0)
    assert stream.push(noise(1)).shape == (1, 2)
    assert stream.finish().shape == (0, 2)
    assert (stream.num_samples, stream.num_frames) == (FRAME, 1)


def test_the_end_is_padded_like_a_whole_waveform(tokenizer: CatTokenizer) -> None:
    wave = noise(2 * FRAME + 7)
    stream = tokenizer.encoder_stream()
    assert torch.equal(stream.push(wave), tokenizer.encode([wave])[0][:2])
    assert torch.equal(stream.finish(), tokenizer.encode([wave])[0][2:])
    assert (stream.num_samples, stream.num_frames) == (len(wave), 3)


def test_nothing_pushed_is_nothing(tokenizer: CatTokenizer) -> None:
    stream = tokenizer.encoder_stream()
    assert stream.finish().shape == (0, 4)
    assert stream.num_samples == 0
    assert tokenizer.decoder_stream().push(torch.zeros(0, 4, dtype=torch.long)).shape == (0,)
    assert TOKENIZERS["stereo"].decoder_stream().push(torch.zeros(0, 4, dtype=torch.long)).shape == (2, 0)


def test_codebooks_may_come_and_go(tokenizer: CatTokenizer) -> None:
    codes = tokenizer.encode([noise(20 * FRAME)])[0]
    thinned = codes.clone()
    thinned[5:12, 2:] = tokenizer.spec.pad_code
    stream = tokenizer.decoder_stream()
    pieces = [codes[:5], codes[5:12, :2], codes[12:]]
    assert (run_decoder(stream, pieces) - tokenizer.decode([thinned])[0]).abs().max() <= WAVE_TOLERANCE


def test_long_pushes_run_in_pieces(tokenizer: CatTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    wave = noise(30 * FRAME)
    codes = tokenizer.encode([wave])[0]
    whole = tokenizer.decode([codes])[0]
    lengths: list[int] = []
    encode, decode = tokenizer.model.encode_hidden, tokenizer.model.decode_hidden
    monkeypatch.setattr(tokenizer, "_frames_per_pass", 4)
    monkeypatch.setattr(
        tokenizer.model, "encode_hidden", lambda x, state: lengths.append(x.shape[1] // FRAME) or encode(x, state)
    )
    monkeypatch.setattr(tokenizer.model, "decode_hidden", lambda x, s: lengths.append(x.shape[1]) or decode(x, s))
    assert torch.equal(run_encoder(tokenizer.encoder_stream(), [wave]), codes)
    assert torch.equal(tokenizer.encode([wave])[0], codes)
    assert (run_decoder(tokenizer.decoder_stream(), [codes]) - whole).abs().max() <= WAVE_TOLERANCE
    assert (tokenizer.decode([codes])[0] - whole).abs().max() <= WAVE_TOLERANCE
    assert lengths == ([4] * 7 + [2]) * 4


# States


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("frames", [0, 3, 25])
def test_a_stream_goes_on_from_a_file(kind: str, frames: int, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[kind]
    wave = sound(tokenizer, FRAMES * FRAME - 7)
    codes = tokenizer.encode([wave])[0]
    encoding, decoding = tokenizer.encoder_stream(), tokenizer.decoder_stream()
    at = frames * FRAME + 100
    encoding.push(wave[..., :at])
    decoding.push(codes[:frames])
    save_file(encoding.state(), tmp_path / "encoder.safetensors")
    save_file(decoding.state(), tmp_path / "decoder.safetensors")
    # What the first stream does later is nothing to the second.
    encoding.push(noise(9 * FRAME, 5))
    decoding.push(codes[:9])
    encoder, decoder = tokenizer.encoder_stream(), tokenizer.decoder_stream()
    encoder.restore(load_file(tmp_path / "encoder.safetensors"))
    decoder.restore(load_file(tmp_path / "decoder.safetensors"))
    assert (encoder.num_samples, encoder.num_frames, decoder.num_frames) == (at, frames, frames)
    assert torch.equal(run_encoder(encoder, cut(wave[..., at:], [700], -1)), codes[frames:])
    rest = tokenizer.decode([codes])[0][..., frames * FRAME :]
    assert (run_decoder(decoder, cut(codes[frames:], [3], 0)) - rest).abs().max() <= WAVE_TOLERANCE


def test_one_state_starts_many_streams(tokenizer: CatTokenizer) -> None:
    codes = tokenizer.encode([noise(30 * FRAME)])[0]
    first = tokenizer.decoder_stream()
    first.push(codes[:15])
    state = first.state()
    kept = {name: value.clone() for name, value in state.items()}
    expected = tokenizer.decode([codes])[0][15 * FRAME :]
    for _ in range(2):
        stream = tokenizer.decoder_stream()
        stream.restore(state)
        assert (run_decoder(stream, cut(codes[15:], [1, 4], 0)) - expected).abs().max() <= WAVE_TOLERANCE
    assert all(torch.equal(value, kept[name]) for name, value in state.items())


def test_a_restored_stream_may_be_one_that_was_finished(tokenizer: CatTokenizer) -> None:
    wave = noise(5 * FRAME)
    stream = tokenizer.encoder_stream()
    stream.push(wave[: 2 * FRAME])
    state = stream.state()
    stream.finish()
    stream.restore(state)
    assert torch.equal(stream.push(wave[2 * FRAME :]), tokenizer.encode([wave])[0][2:])


def saved(kind: str, tokenizer: CatTokenizer, compatibility: Compatibility = Compatibility.none) -> dict[str, Tensor]:
    if kind == "encoder":
        encoder = tokenizer.encoder_stream(compatibility=compatibility)
        encoder.push(noise(3 * FRAME + 5))
        return encoder.state()
    decoder = tokenizer.decoder_stream(compatibility=compatibility)
    decoder.push(torch.zeros(3, 4, dtype=torch.long))
    return decoder.state()


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("encoder", lambda s: without(s, "held"), "missing: held"),
        ("encoder", lambda s: without(s, "keys.1.0"), "missing: keys.1.0"),
        ("encoder", lambda s: s | {"more": torch.zeros(1)}, "unknown: more"),
        ("encoder", lambda s: s | {"held": torch.zeros(480)}, "held: expected at most 479 samples, got 480"),
        ("encoder", lambda s: s | {"held": torch.zeros(2, 5)}, r"held: expected float32 .* got torch.float32 \(2, 5\)"),
        ("encoder", lambda s: s | {"held": s["held"].double()}, "held: expected float32 .* got torch.float64"),
        (
            "encoder",
            lambda s: s | {"values.3.1": s["values.3.1"][:, :, 1:]},
            r"values.3.1: expected torch.float32 \(1, 2, 3, 8\), got torch.float32 \(1, 2, 2, 8\)",
        ),
        ("decoder", lambda s: s | {"keys.0.0": s["keys.0.0"].half()}, "keys.0.0: expected .* got torch.float16"),
        ("decoder", lambda s: without(s, "num_frames"), "num_frames: expected one int64, got nothing"),
        ("decoder", lambda s: s | {"model": torch.zeros(2)}, r"model: expected one int64, got torch.float32 \(2,\)"),
        ("decoder", lambda s: s | {"num_frames": torch.tensor(-1)}, "num_frames: expected 0 or more, got -1"),
        ("decoder", lambda s: s | {"num_frames": torch.tensor(4)}, r"keys.0.0: expected torch.float32 \(1, 2, 4, 8\)"),
        ("decoder", lambda s: s | {f"x{i}": torch.zeros(1) for i in range(25)}, r"unknown: x0\n[\s\S]*and 5 more"),
        ("decoder", lambda _: saved("encoder", CatTokenizer(small_model())), "unknown: held"),
        ("decoder", lambda _: saved("decoder", CatTokenizer(small_model(1))), "model: the state is of a tokenizer"),
        (
            "decoder",
            lambda _: saved("decoder", CatTokenizer(small_model()), Compatibility.reference),
            r"published_ring: expected 0, got 1 \(compatibility\)",
        ),
    ],
)
def test_other_states_are_refused(
    tokenizer: CatTokenizer, kind: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    stream = tokenizer.encoder_stream() if kind == "encoder" else tokenizer.decoder_stream()
    state = saved(kind, tokenizer)
    stream.restore(state)
    with pytest.raises(CheckpointError, match="state: not one of a stream of this kind") as raised:
        stream.restore(change(state))
    assert raised.match(message)
    assert stream.num_frames == 3, "a refused state must leave the stream as it was"


# Bad input


def test_bad_pushes_are_named_and_leave_the_stream_as_it_was(tokenizer: CatTokenizer) -> None:
    wave = noise(20 * FRAME)
    stream = tokenizer.encoder_stream()
    codes = [stream.push(wave[:5000])]
    with pytest.raises(DataError, match="samples: sample 1 is nan; 1 samples are not finite"):
        stream.push(torch.tensor([0.0, float("nan"), 0.0]))
    with pytest.raises(DataError, match=r"samples: expected one dimension .* got shape \(2, 9\); average its channels"):
        stream.push(torch.zeros(2, 9))
    with pytest.raises(DataError, match="samples: expected float samples"):
        stream.push(torch.zeros(9, dtype=torch.int16))
    codes += [stream.push(wave[5000:]), stream.finish()]
    assert torch.equal(torch.cat(codes), tokenizer.encode([wave])[0])
    decoder = tokenizer.decoder_stream()
    with pytest.raises(DataError, match=r"codes: 17 at frame 0, codebook 0 is outside \[0, 16\]"):
        decoder.push(torch.full((1, 4), 17))
    assert decoder.num_frames == 0


@pytest.mark.parametrize("call", ["push", "finish", "state"])
def test_a_finished_stream_is_closed(tokenizer: CatTokenizer, call: str) -> None:
    stream = tokenizer.encoder_stream()
    stream.push(noise(700))
    stream.finish()
    with pytest.raises(DataError, match=r"stream: was finished; open a new one with tokenizer.encoder_stream\(\)"):
        stream.push(noise(1)) if call == "push" else getattr(stream, call)()


def test_codebook_counts_are_checked(tokenizer: CatTokenizer) -> None:
    with pytest.raises(DataError, match="num_codebooks: expected 1 to 4, got 5"):
        tokenizer.encoder_stream(5)


def test_a_push_that_fails_half_way_changes_nothing(tokenizer: CatTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = tokenizer.encode([noise(30 * FRAME)])[0]
    stream = tokenizer.decoder_stream()
    waves = [stream.push(codes[:13])]
    last = tokenizer.model.decoder[-1]
    with monkeypatch.context() as patch:
        patch.setattr(type(last), "forward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
        with pytest.raises(torch.OutOfMemoryError):
            stream.push(codes[13:14])
    assert stream.num_frames == 13
    waves += [stream.push(codes[13:14]), stream.push(codes[14:])]
    assert (torch.cat(waves) - tokenizer.decode([codes])[0]).abs().max() <= WAVE_TOLERANCE


def test_half_a_tokenizer_has_half_of_the_streams() -> None:
    model = small_model()
    encoder = CatTokenizer(CatModel(replace(model.config, part=Part.encoder)))
    decoder = CatTokenizer(CatModel(replace(model.config, part=Part.decoder)))
    assert encoder.encoder_stream().push(noise(FRAME)).shape == (1, 4)
    assert decoder.decoder_stream().push(torch.zeros(1, 4, dtype=torch.long)).shape == (FRAME,)
    with pytest.raises(ConfigError, match="part: encoder cannot decode"):
        encoder.decoder_stream()
    with pytest.raises(ConfigError, match="part: decoder cannot encode"):
        decoder.encoder_stream()


# The published cache


def test_the_published_cache_differs_beyond_the_window_only(tokenizer: CatTokenizer) -> None:
    wave = noise(FRAMES * FRAME)
    codes = tokenizer.encode([wave])[0]
    whole = tokenizer.decode([codes])[0]
    decoder = tokenizer.decoder_stream(compatibility=Compatibility.reference)
    made = run_decoder(decoder, cut(codes, [5], 0))
    assert (made[: 10 * FRAME] - whole[: 10 * FRAME]).abs().max() <= WAVE_TOLERANCE
    assert (made[10 * FRAME :] - whole[10 * FRAME :]).abs().max() > 100 * WAVE_TOLERANCE
    encoder = tokenizer.encoder_stream(compatibility=Compatibility.reference)
    coded = run_encoder(encoder, cut(wave, [5 * FRAME], 0))
    assert torch.equal(coded[:10], codes[:10])
    assert not torch.equal(coded, codes)


def test_the_published_cache_goes_on_from_a_state(tokenizer: CatTokenizer) -> None:
    codes = tokenizer.encode([noise(FRAMES * FRAME)])[0]
    expected = run_decoder(tokenizer.decoder_stream(compatibility=Compatibility.reference), cut(codes, [5], 0))
    first, second = (tokenizer.decoder_stream(compatibility=Compatibility.reference) for _ in range(2))
    made = run_decoder(first, cut(codes[:25], [5], 0))
    second.restore(first.state())
    made = torch.cat((made, run_decoder(second, cut(codes[25:], [5], 0))))
    assert torch.equal(made, expected)


def test_the_published_cache_takes_no_more_than_it_holds(tokenizer: CatTokenizer) -> None:
    message = "compatibility=reference: the published cache takes at most 10 frames at once, got 11"
    decoder = tokenizer.decoder_stream(compatibility=Compatibility.reference)
    assert decoder.push(torch.zeros(10, 4, dtype=torch.long)).shape == (10 * FRAME,)
    with pytest.raises(DataError, match=message):
        decoder.push(torch.zeros(11, 4, dtype=torch.long))
    with pytest.raises(DataError, match=message):
        tokenizer.encoder_stream(compatibility=Compatibility.reference).push(noise(11 * FRAME))


# Sharing


def test_threads_share_a_tokenizer(tokenizer: CatTokenizer) -> None:
    waves = [noise(25 * FRAME + 13 * i, i) for i in range(4)]

    def both(wave: Tensor) -> tuple[Tensor, Tensor]:
        codes = run_encoder(tokenizer.encoder_stream(), cut(wave, [333, 1000], 0))
        return codes, run_decoder(tokenizer.decoder_stream(), cut(codes, [1, 3], 0))

    alone = [both(wave) for wave in waves]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(both, waves * 3))
    for i, (codes, wave) in enumerate(together):
        assert torch.equal(codes, alone[i % 4][0])
        assert torch.equal(wave, alone[i % 4][1])


def test_a_stream_goes_on_outside_the_inference_mode_it_began_in() -> None:
    tokenizer = TOKENIZERS["mono"]
    wave = sound(tokenizer, 6 * FRAME)
    encoder, decoder = tokenizer.encoder_stream(), tokenizer.decoder_stream()
    codes, made = [], []
    for start in range(0, len(wave), FRAME):
        # The second push makes room for the third.
        with torch.inference_mode(start < 2 * FRAME):
            codes.append(encoder.push(wave[start : start + FRAME]))
            made.append(decoder.push(codes[-1]))
    assert torch.equal(torch.cat([*codes, encoder.finish()]), tokenizer.encode([wave])[0])
    whole = tokenizer.decode(tokenizer.encode([wave]))[0]
    assert (torch.cat(made, -1) - whole).abs().max() <= WAVE_TOLERANCE
