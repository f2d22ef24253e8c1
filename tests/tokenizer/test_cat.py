"""The network's gradients, and the tokenizer's lengths, checks and independence of neighbours."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moss.errors import CheckpointError, DataError
from moss.tokenizer.cat import CatModel, CatTokenizer, codes_from_public, codes_to_public
from moss.tokenizer.hf_map import write_weights
from moss.tokenizer.interface import AudioTokenizer
from moss.tokenizer.losses import MultiScaleMelLoss
from tests.tokenizer.conftest import small_model


def noise(samples: int, seed: int = 0) -> Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)) * 0.1


def test_it_is_an_audio_tokenizer(tokenizer: CatTokenizer) -> None:
    assert isinstance(tokenizer, AudioTokenizer)
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


def test_axis_order_round_trip() -> None:
    codes = torch.arange(24).view(2, 3, 4)
    assert codes_from_public(codes).shape == (3, 4, 2)
    assert torch.equal(codes_to_public(codes_from_public(codes)), codes)


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


def test_missing_file_is_named(tokenizer: CatTokenizer, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none.safetensors: no such file"):
        CatTokenizer.load(tokenizer.model.config, tmp_path / "none.safetensors")


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
