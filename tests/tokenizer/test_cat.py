"""The network's gradients, and the tokenizer's lengths, checks and independence of neighbours."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moss.config.tokenizer import BatchPolicy, ComputeDtype, Part
from moss.errors import CheckpointError, ConfigError, DataError
from moss.tokenizer import cat
from moss.tokenizer.cat import CatModel, CatTokenizer
from moss.tokenizer.hf_map import write_weights
from moss.tokenizer.interface import AudioTokenizer, can_stream
from moss.tokenizer.losses import MultiScaleMelLoss
from moss.tokenizer.quantizer import FoldedQuantizer
from tests.tokenizer.conftest import small_model, small_stereo_model


def noise(samples: int, seed: int = 0) -> Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)) * 0.1


def test_it_is_an_audio_tokenizer(tokenizer: CatTokenizer) -> None:
    assert isinstance(tokenizer, AudioTokenizer)
    assert can_stream(tokenizer)
    assert tokenizer.spec.frames_per_s == 50
    assert (tokenizer.spec.num_codebooks, tokenizer.spec.codebook_size) == (4, 16)


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (479, 1), (480, 1), (481, 2), (48_000, 100)])
def test_a_partial_frame_counts(tokenizer: CatTokenizer, samples: int, frames: int) -> None:
    (codes,) = tokenizer.encode([noise(samples)])
    assert codes.shape == (frames, 4)
    assert codes.dtype == torch.int64
    (wave,) = tokenizer.decode([codes], [samples])
    assert wave.shape == (samples,)
    assert tokenizer.decode([codes])[0].shape == (frames * 480,)


def test_items_of_a_batch_are_bitwise_those_encoded_alone(tokenizer: CatTokenizer) -> None:
    waves = [noise(length, length) for length in (7000, 100, 30_001)]
    codes = tokenizer.encode(waves)
    for wave, item, decoded in zip(waves, codes, tokenizer.decode(codes), strict=True):
        assert torch.equal(item, tokenizer.encode([wave])[0])
        assert torch.equal(decoded, tokenizer.decode([item])[0])


def test_fewer_codebooks_are_a_prefix(tokenizer: CatTokenizer) -> None:
    wave = noise(5000)
    assert torch.equal(tokenizer.encode([wave], 3)[0], tokenizer.encode([wave])[0][:, :3])


def test_pad_codes_decode_like_absent_codebooks(tokenizer: CatTokenizer) -> None:
    (codes,) = tokenizer.encode([noise(5000)])
    padded = codes.clone()
    padded[:, 2:] = tokenizer.spec.pad_code
    assert torch.equal(tokenizer.decode([padded])[0], tokenizer.decode([codes[:, :2]])[0])


def test_no_items_and_no_frames(tokenizer: CatTokenizer) -> None:
    assert tokenizer.encode([]) == []
    assert tokenizer.decode([torch.zeros(0, 4, dtype=torch.long)])[0].shape == (0,)


def test_long_items_run_in_pieces_that_continue_each_other(
    tokenizer: CatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = noise(45 * 480 - 11)
    (codes,) = tokenizer.encode([wave])
    (whole,) = tokenizer.decode([codes], [len(wave)])
    monkeypatch.setattr(cat, "PASS_S", 0.25)
    pieces = CatTokenizer(tokenizer.model)
    longest: list[int] = []
    encode, decode = tokenizer.model.encode_hidden, tokenizer.model.decode_hidden
    monkeypatch.setattr(
        tokenizer.model, "encode_hidden", lambda x, s: longest.append(x.shape[1] // 480) or encode(x, s)
    )
    monkeypatch.setattr(tokenizer.model, "decode_hidden", lambda x, s: longest.append(x.shape[1]) or decode(x, s))
    assert torch.equal(pieces.encode([wave])[0], codes)
    (made,) = pieces.decode([codes], [len(wave)])
    assert made.shape == wave.shape
    assert (made - whole).abs().max() <= 5e-5
    assert longest == [12, 12, 12, 9] * 2


CODES = torch.zeros(3, 4, dtype=torch.long)


def bad_code(value: int) -> Tensor:
    codes = CODES.clone()
    codes[1, 2] = value
    return codes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.encode([torch.zeros(2, 5)]), r"wave 0: expected one dimension .* got shape \(2, 5\)"),
        (lambda t: t.encode([noise(5), torch.zeros(0)]), "wave 1: is empty"),
        (lambda t: t.encode([torch.zeros(5, dtype=torch.int16)]), "wave 0: expected float samples .* torch.int16"),
        (lambda t: t.encode([torch.tensor([0.0, float("nan")])]), "wave 0: sample 1 is nan; 1 samples"),
        (lambda t: t.encode([torch.zeros(1, 5)]), r"wave 0: expected one dimension .* got shape \(1, 5\)"),
        (lambda t: t.encode([noise(5)], 0), "num_codebooks: expected 1 to 4, got 0"),
        (lambda t: t.encode([noise(5)], 5), "num_codebooks: expected 1 to 4, got 5"),
        (lambda t: t.decode([torch.zeros(4, dtype=torch.long)]), r"codes 0: expected shape .* got \(4,\)"),
        (lambda t: t.decode([torch.zeros(3, 4)]), "codes 0: expected whole numbers, got torch.float32"),
        (lambda t: t.decode([CODES[:, :0]]), "codes 0: expected 1 to 4 codebooks, got 0"),
        (lambda t: t.decode([CODES.repeat(1, 2)]), "codes 0: expected 1 to 4 codebooks, got 8"),
        (lambda t: t.decode([bad_code(17)]), r"codes 0: 17 at frame 1, codebook 2 is outside \[0, 16\]"),
        (lambda t: t.decode([bad_code(-1)]), "codes 0: -1 at frame 1, codebook 2"),
        (lambda t: t.decode([CODES], [1441]), r"num_samples\[0\]: 3 frames hold at most 1440 samples, got 1441"),
        (lambda t: t.decode([CODES], [1, 2]), "num_samples: expected one length per item, 1, got 2"),
    ],
)
def test_bad_input_is_named(tokenizer: CatTokenizer, call: Callable[[CatTokenizer], object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        call(tokenizer)


def test_weights_round_trip_through_a_file(tokenizer: CatTokenizer, tmp_path: Path) -> None:
    write_weights(tmp_path / "cat.safetensors", tokenizer.model)
    loaded = CatTokenizer.load(tokenizer.model.config, tmp_path / "cat.safetensors")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert torch.equal(loaded.encode([noise(9000)])[0], tokenizer.encode([noise(9000)])[0])
    assert [file.name for file in tmp_path.iterdir()] == ["cat.safetensors"]


def test_fingerprint_follows_the_weights(tokenizer: CatTokenizer) -> None:
    assert len(tokenizer.fingerprint) == 16
    assert int(tokenizer.fingerprint, 16) >= 0
    assert CatTokenizer(small_model(0)).fingerprint == tokenizer.fingerprint
    assert CatTokenizer(small_model(1)).fingerprint != tokenizer.fingerprint


def test_fingerprint_follows_the_settings(tokenizer: CatTokenizer) -> None:
    bucketed = small_model()
    bucketed.config = replace(bucketed.config, batch_policy=BatchPolicy.bucketed)
    assert CatTokenizer(bucketed).fingerprint != tokenizer.fingerprint
    half = small_model()
    half.config = replace(half.config, compute_dtype=ComputeDtype.bf16)
    assert CatTokenizer(half).fingerprint == tokenizer.fingerprint, "on a CPU it computes in float32 all the same"


def test_missing_file_is_named(tokenizer: CatTokenizer, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none.safetensors: no such file"):
        CatTokenizer.load(tokenizer.model.config, tmp_path / "none.safetensors")


def bucketed(model: CatModel) -> CatTokenizer:
    model.config = replace(model.config, batch_policy=BatchPolicy.bucketed)
    return CatTokenizer(model)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("build_model", [small_model, small_stereo_model])
def test_buckets_change_no_code_and_no_order(
    seed: int, build_model: Callable[[int], CatModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cat, "PASS_S", 1.0)
    single, together = CatTokenizer(build_model(seed)), bucketed(build_model(seed))
    generator = torch.Generator().manual_seed(seed)
    lengths = [*torch.randint(1, 30 * 480, (12,), generator=generator).tolist(), 40 * 480, 60 * 480 + 1]
    waves = [noise(length, length) for length in lengths]
    if single.spec.num_audio_channels == 2:
        waves[::2] = [torch.stack((wave, wave.flip(0))) for wave in waves[::2]]
    sizes: list[int] = []
    encode = together.model.encode_hidden
    monkeypatch.setattr(together.model, "encode_hidden", lambda x, s: sizes.append(len(x)) or encode(x, s))
    codes = together.encode(waves, 3)
    assert max(sizes) > 1, "nothing was put together"
    for item, expected in zip(codes, single.encode(waves, 3), strict=True):
        assert torch.equal(item, expected)
    codes[3], codes[5] = codes[3][:0], codes[5][:, :1]
    samples = [min(length, len(item) * 480) for length, item in zip(lengths, codes, strict=True)]
    for item, expected in zip(together.decode(codes, samples), single.decode(codes, samples), strict=True):
        assert item.shape == expected.shape
        assert torch.allclose(item, expected, atol=1e-5, rtol=0)


# Stereo


def test_stereo_lengths_count_samples_per_channel() -> None:
    stereo = CatTokenizer(small_stereo_model())
    assert (stereo.spec.num_audio_channels, stereo.spec.samples_per_frame) == (2, 480)
    for samples, frames in [(1, 1), (480, 1), (481, 2)]:
        (codes,) = stereo.encode([noise(2 * samples).view(2, -1)])
        assert codes.shape == (frames, 4)
        assert stereo.decode([codes], [samples])[0].shape == (2, samples)
        assert stereo.decode([codes])[0].shape == (2, frames * 480)
    assert stereo.decode([codes[:0]])[0].shape == (2, 0)


def test_stereo_is_interleaved_sample_by_sample() -> None:
    stereo = CatTokenizer(small_stereo_model())
    wave = noise(2 * 3000).view(2, -1)
    left_right = torch.zeros(2 * 3000)
    left_right[0::2], left_right[1::2] = wave[0], wave[1]
    with torch.no_grad():
        output = stereo.model.quantizer(stereo.model.encode_hidden(left_right[None]))
        made = stereo.model.decode_hidden(output.quantized_BTD)[0]
    (codes,) = stereo.encode([wave])
    assert torch.equal(codes, output.codes_BTK[0])
    decoded = stereo.decode([codes])[0]
    torch.testing.assert_close(decoded, torch.stack((made[0::2], made[1::2])), atol=1e-5, rtol=0)
    assert not torch.equal(stereo.encode([wave.flip(0)])[0], codes)


def test_stereo_hears_mono_on_both_channels() -> None:
    stereo = CatTokenizer(small_stereo_model())
    wave = noise(3000)
    assert torch.equal(stereo.encode([wave])[0], stereo.encode([torch.stack((wave, wave))])[0])


@pytest.mark.parametrize("shape", [(3, 5), (1, 5), (5, 2), (1, 2, 5), ()])
def test_other_channels_are_refused(shape: tuple[int, ...]) -> None:
    stereo = CatTokenizer(small_stereo_model())
    with pytest.raises(DataError, match=r"wave 0: expected shape \(2, samples\), or \(samples,\) .* mix or average"):
        stereo.encode([torch.zeros(shape)])


def test_a_bad_sample_of_a_channel_is_named() -> None:
    wave = torch.zeros(2, 5)
    wave[1, 3] = torch.inf
    with pytest.raises(DataError, match="wave 0: sample 3 is inf; 1 samples are not finite"):
        CatTokenizer(small_stereo_model()).encode([wave])


# Parts


@pytest.mark.parametrize("part", [Part.encoder, Part.decoder])
def test_half_a_model_has_half_of_the_state(part: Part) -> None:
    whole = small_model()
    half = CatModel(replace(whole.config, part=part))
    left_out = {Part.encoder: "decoder.", Part.decoder: "encoder."}[part]
    assert list(half.state_dict()) == [name for name in whole.state_dict() if not name.startswith(left_out)]
    assert (half.encoder is None) == (part is Part.decoder)
    assert (half.decoder is None) == (part is Part.encoder)


def test_halves_of_a_file_do_their_part_and_are_known_as_the_whole(tokenizer: CatTokenizer, tmp_path: Path) -> None:
    file = tmp_path / "whole.safetensors"
    write_weights(file, tokenizer.model)
    config = tokenizer.model.config
    encoder = CatTokenizer.load(replace(config, part=Part.encoder), file)
    decoder = CatTokenizer.load(replace(config, part=Part.decoder), file)
    wave = noise(9000)
    (codes,) = tokenizer.encode([wave])
    assert torch.equal(encoder.encode([wave])[0], codes)
    assert torch.equal(decoder.decode([codes])[0], tokenizer.decode([codes])[0])
    assert encoder.fingerprint == decoder.fingerprint == tokenizer.fingerprint
    with pytest.raises(ConfigError, match="part: decoder cannot encode; load the tokenizer with part=full or part=enc"):
        decoder.encode([wave])
    with pytest.raises(ConfigError, match="part: encoder cannot decode; load the tokenizer with part=full or part=dec"):
        encoder.decode([codes])


def test_every_parameter_has_a_gradient(model: CatModel) -> None:
    torch.manual_seed(0)
    for layer in model.quantizer.quantizers:
        layer.codebook.weight.data *= 0.01
    wave = noise(2 * 9600).view(2, -1)
    generated, output = model(wave)
    assert generated.shape == wave.shape
    (MultiScaleMelLoss(24_000)(generated, wave) + output.commitment_loss + output.codebook_loss).backward()
    without = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []


def test_codebook_loss_does_not_reach_the_encoder(model: CatModel) -> None:
    model(noise(9600)[None])[1].codebook_loss.backward()
    assert all(value.grad is None or not value.grad.any() for value in model.encoder.parameters())


def test_commitment_loss_does_not_reach_a_codebook(model: CatModel) -> None:
    model(noise(9600)[None])[1].commitment_loss.backward()
    for layer in model.quantizer.quantizers:
        assert layer.codebook.weight.grad is None or not layer.codebook.weight.grad.any()
    assert any(value.grad is not None and value.grad.any() for value in model.encoder.parameters())


# Arithmetic


@pytest.mark.parametrize("dtype", [ComputeDtype.bf16, ComputeDtype.fp16])
def test_half_precision_is_for_cuda(dtype: ComputeDtype, caplog: pytest.LogCaptureFixture) -> None:
    model = small_model()
    expected = CatTokenizer(small_model()).encode([noise(9000)])[0]
    model.config = replace(model.config, compute_dtype=dtype)
    tokenizer = CatTokenizer(model)
    assert tokenizer.dtype is torch.float32
    assert torch.equal(tokenizer.encode([noise(9000)])[0], expected)
    assert [record.message for record in caplog.records] == [
        f"tokenizer.compute_dtype: {dtype} is for CUDA; on cpu the tokenizer runs in fp32"
    ]


def test_the_arithmetic_of_the_caller_is_not_taken_over(tokenizer: CatTokenizer) -> None:
    wave = noise(20 * 480)
    (codes,) = tokenizer.encode([wave])
    (sound,) = tokenizer.decode([codes])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tokenizer.encode([wave])[0], codes)
        assert torch.equal(tokenizer.decode([codes])[0], sound)


def test_only_the_transformers_are_in_half_precision(tokenizer: CatTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tokenizer.decode([torch.zeros(20, 4, dtype=torch.long)])[0]
    # As on CUDA; the mechanism is the same on a CPU.
    monkeypatch.setattr(tokenizer, "dtype", torch.bfloat16)
    seen: list[tuple[torch.dtype, bool]] = []
    encode = FoldedQuantizer.encode

    def watch(self: FoldedQuantizer, hidden: Tensor, count: int) -> Tensor:
        seen.append((hidden.dtype, torch.is_autocast_enabled("cpu")))
        return encode(self, hidden, count)

    monkeypatch.setattr(FoldedQuantizer, "encode", watch)
    assert tokenizer.encode([noise(9000)])[0].shape == (19, 4)
    assert seen == [(torch.bfloat16, False)]
    stream = tokenizer.decoder_stream()
    sound = stream.push(torch.zeros(20, 4, dtype=torch.long))
    assert sound.dtype is torch.float32
    assert {value.dtype for name, value in stream.state().items() if name.startswith("keys")} == {torch.bfloat16}
    assert 0 < (sound - expected).abs().max() <= 0.05 * expected.abs().max()
    restored = tokenizer.decoder_stream()
    restored.restore(stream.state())
    codes = torch.ones(1, 4, dtype=torch.long)
    assert torch.equal(restored.push(codes), stream.push(codes))
