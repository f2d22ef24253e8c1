"""The tokenizer against the published implementation, on a tiny model with random weights.

Sizes, rates, ids and prefix lengths all come from the fixture.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moss.config.load_tokenizer import config_of_folder, load_tokenizer_config
from moss.config.published_tokenizer import Generation, config_from_published
from moss.config.tokenizer import PatchStage, TransformerStage
from moss.tokenizer.build import build_tokenizer
from moss.tokenizer.cat import CatModel, CatTokenizer
from moss.tokenizer.convert import write_published
from moss.tokenizer.hf_map import canonical_key, key_48khz, load_state, read_weights
from moss.tokenizer.stream_state import new_stream
from moss.tokenizer.transformer import StageState, Transformer, patchify, rotary_angles, rotate, unpatchify
from tests.tokenizer.published import codes_from_public

HIDDEN_TOLERANCE = 2e-5
WAVE_TOLERANCE = 5e-5
INVENTORIES = {
    "manifest_v1": (1600, 1_774_566_400),
    "manifest_v2": (2094, 2_123_701_248),
    "manifest_nano": (374, 21_969_664),
}
PRESETS = {"manifest_v1": "cat_full", "manifest_v2": "cat_v2", "manifest_nano": "cat_nano"}


def traced_stages(stack: torch.nn.ModuleList, x: Tensor) -> list[Tensor]:
    outputs = []
    with torch.no_grad():
        for stage in stack:
            x = stage(x)
            outputs.append(x)
    return outputs


def published(trace: Tensor) -> Tensor:
    return trace.transpose(1, 2)


# 1. State dicts


def test_every_tensor_of_the_fixture_has_its_place(fixture: dict[str, Any], model: CatModel) -> None:
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == {
        key: tuple(value.shape) for key, value in fixture["state_dict"].items()
    }


@pytest.mark.parametrize("name", INVENTORIES)
def test_inventory_of_a_published_checkpoint(fixture: dict[str, Any], name: str) -> None:
    manifest = {key: tuple(shape) for key, shape in fixture[name].items()}
    with torch.device("meta"):
        model = CatModel(load_tokenizer_config(PRESETS[name]))
        load_state(model, {key: torch.empty(shape) for key, shape in manifest.items()}, name)
    ours = model.state_dict()
    spelling = key_48khz if any(".ffn." in key for key in manifest) else str
    assert {spelling(key): tuple(value.shape) for key, value in ours.items()} == manifest
    assert {canonical_key(key) for key in manifest} == set(ours)
    assert (len(ours), sum(value.numel() for value in ours.values())) == INVENTORIES[name]


def test_the_export_is_the_fixture_bit_for_bit(
    fixture: dict[str, Any], model: CatModel, wave: Tensor, codes: Tensor, tmp_path: Path
) -> None:
    assert write_published(tmp_path / "out", model.config, model.state_dict(), max_shard_bytes=50_000) is Generation.v1
    stored = read_weights(tmp_path / "out")
    assert set(stored) == set(fixture["state_dict"])
    for key, value in fixture["state_dict"].items():
        assert stored[key].dtype is value.dtype
        assert torch.equal(stored[key], value), key
    config = config_of_folder(tmp_path / "out")
    assert config.geometry() == config_from_published(fixture["config"]).geometry()
    assert torch.equal(build_tokenizer(config).encode([wave])[0], codes)


def test_the_export_in_the_names_of_v2_gives_the_fixtures_codes(
    model: CatModel, wave: Tensor, codes: Tensor, tmp_path: Path
) -> None:
    write_published(tmp_path / "out", model.config, model.state_dict(), Generation.v2)
    tokenizer = build_tokenizer(load_tokenizer_config(str(tmp_path / "out")))
    assert any(key.endswith("ffn.0.weight") for key in read_weights(tmp_path / "out"))
    assert torch.equal(tokenizer.encode([wave])[0], codes)


# 2. Patches


def test_patchify_is_bit_equal_and_unpatchify_its_inverse(
    fixture: dict[str, Any], model: CatModel, wave: Tensor
) -> None:
    sizes = [stage.patch_size for stage in model.config.encoder if isinstance(stage, PatchStage)]
    folded = patchify(wave[None, :, None], sizes[0])
    assert torch.equal(folded, published(fixture["trace"]["encoder.0"]))
    assert torch.equal(unpatchify(folded, sizes[0]), wave[None, :, None])
    again = patchify(folded, sizes[1])
    assert torch.equal(unpatchify(again, sizes[1]), folded)


# 3. Hidden states


def test_every_encoder_stage(fixture: dict[str, Any], model: CatModel, wave: Tensor) -> None:
    stages = traced_stages(model.encoder, wave[None, :, None])
    for i, stage in enumerate(stages):
        assert (stage - published(fixture["trace"][f"encoder.{i}"])).abs().max() <= HIDDEN_TOLERANCE, i
    assert (stages[-1] - published(fixture["encoder_hidden_states"])).abs().max() <= HIDDEN_TOLERANCE


def test_every_decoder_stage(fixture: dict[str, Any], model: CatModel) -> None:
    stages = traced_stages(model.decoder, published(fixture["trace"]["quantizer.decode_codes"]))
    for i, stage in enumerate(stages):
        assert (stage - published(fixture["trace"][f"decoder.{i}"])).abs().max() <= WAVE_TOLERANCE, i


# 4. Rotary embedding


@pytest.mark.parametrize("offset", [0, 137])
def test_rotation_is_of_adjacent_pairs(fixture: dict[str, Any], model: CatModel, offset: int) -> None:
    stage = next(stage for stage in model.config.encoder if isinstance(stage, TransformerStage))
    head_size = stage.hidden_size // stage.num_heads
    generator = torch.Generator().manual_seed(offset)
    x = torch.randn(2, stage.num_heads, 50, head_size, generator=generator)
    ours = rotate(x, *rotary_angles(offset, 50, head_size, stage.rope_theta, x.device))
    exponent = torch.arange(head_size // 2, dtype=torch.float64) * 2 / head_size
    angle = torch.arange(offset, offset + 50, dtype=torch.float64)[:, None] * stage.rope_theta**-exponent
    turn = torch.polar(torch.ones_like(angle), angle)
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    expected = torch.view_as_real(pairs * turn).flatten(-2)
    assert (ours - expected).abs().max() <= 1e-6
    halves = torch.complex(*x.double().chunk(2, -1)) * turn
    assert (ours - torch.cat((halves.real, halves.imag), -1)).abs().max() > 0.1


# 5. Weight norm


def test_weight_norm_is_gain_times_unit_rows(fixture: dict[str, Any], model: CatModel) -> None:
    state = fixture["state_dict"]
    stem = "quantizer.input_proj.parametrizations.weight."
    rows = state[stem + "original1"][:, :, 0]
    dense = state[stem + "original0"][:, :, 0] * rows / rows.norm(dim=1, keepdim=True)
    hidden = published(fixture["encoder_hidden_states"])
    expected = published(fixture["trace"]["quantizer.input_proj"])
    assert (F.linear(hidden, dense, state["quantizer.input_proj.bias"]) - expected).abs().max() <= 2e-6
    with torch.no_grad():
        assert (model.quantizer.input_proj(hidden) - expected).abs().max() <= 2e-6


# 6. Codes


def test_all_codes_are_equal(tokenizer: CatTokenizer, wave: Tensor, codes: Tensor) -> None:
    assert torch.equal(tokenizer.encode([wave])[0], codes)


def test_latents_and_residual_updates_of_every_codebook(
    fixture: dict[str, Any], model: CatModel, codes: Tensor
) -> None:
    trace = fixture["trace"]
    with torch.no_grad():
        output = model.quantizer(published(fixture["encoder_hidden_states"]))
        for i, layer in enumerate(model.quantizer.quantizers):
            latent = published(trace[f"quantizer.{i}.z_e"])
            assert (output.latents_BTKc[:, :, i] - latent).norm() <= 1e-5 * latent.norm()
            expected = published(trace[f"quantizer.{i}.z_q"])
            update = layer.out_proj(layer.codebook(codes[None, :, i]))
            assert (update - expected).norm() <= 1e-5 * expected.norm()


# 7. Prefixes


def test_decoding_of_every_prefix(fixture: dict[str, Any], tokenizer: CatTokenizer, codes: Tensor) -> None:
    for count, expected in fixture["decoded"].items():
        decoded = tokenizer.decode([codes[:, : int(count)]])[0]
        assert (decoded - expected[0, 0]).abs().max() <= WAVE_TOLERANCE, count


def test_encoding_of_every_prefix(
    fixture: dict[str, Any], tokenizer: CatTokenizer, wave: Tensor, codes: Tensor
) -> None:
    for count in fixture["decoded"]:
        assert torch.equal(tokenizer.encode([wave], int(count))[0], codes[:, : int(count)])


# 8. Streaming state


def test_chunked_decoding_and_encoding_equal_the_whole(
    fixture: dict[str, Any], model: CatModel, tokenizer: CatTokenizer, wave: Tensor, codes: Tensor
) -> None:
    frame = model.config.samples_per_frame
    folded = model.quantizer.fold()
    expected = fixture["decoded"][max(fixture["decoded"])][0, 0]
    shortest = min(stage.context for stage in model.decoder if isinstance(stage, Transformer))
    assert len(codes) > shortest, "the fixture must be long enough to drop cached keys"
    for chunk in (int(size) for size in fixture["streaming_decoded_reference"]):
        decoding, encoding = new_stream(model.decoder), new_stream(model.encoder)
        waves, coded = [], []
        with torch.no_grad():
            for start in range(0, len(codes), chunk):
                piece = slice(start, start + chunk)
                waves.append(model.decode_hidden(folded.decode(codes[None, piece]), decoding))
                samples = wave[None, start * frame : (start + chunk) * frame]
                coded.append(folded.encode(model.encode_hidden(samples, encoding)))
        assert (torch.cat(waves, 1)[0] - expected).abs().max() <= WAVE_TOLERANCE, chunk
        assert torch.equal(torch.cat(coded, 1)[0], codes), chunk
        _assert_bounded(decoding, model.decoder)


def _assert_bounded(stream: list[StageState], stack: torch.nn.ModuleList) -> None:
    for state, stage in zip(stream, stack, strict=True):
        for keys in state.keys:
            assert keys.shape[2] <= stage.context - 1


# 9. Batches and lengths


def test_a_batch_gives_the_codes_of_its_items(
    fixture: dict[str, Any], model: CatModel, tokenizer: CatTokenizer, wave: Tensor
) -> None:
    lengths = fixture["batch"]["wav_lengths"]
    expected = codes_from_public(fixture["batch"]["codes"])
    waves = [wave[:length] for length in lengths]
    together = tokenizer.encode(waves)
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    with torch.no_grad():
        stacked = model.quantizer.fold().encode(model.encode_hidden(padded))
    for i, length in enumerate(lengths):
        whole, partial = divmod(length, model.config.samples_per_frame)
        assert int(fixture["batch"]["lengths"][i]) == whole, "the published code floors"
        assert len(together[i]) == whole + bool(partial), "ours counts the partial frame"
        assert torch.equal(together[i][:whole], expected[i, :whole])
        assert torch.equal(together[i], tokenizer.encode([waves[i]])[0])
        assert torch.equal(together[i], stacked[i, : len(together[i])])


def test_a_batch_of_codes_decodes_to_the_waves_of_its_items(
    fixture: dict[str, Any], model: CatModel, tokenizer: CatTokenizer, codes: Tensor
) -> None:
    short = len(codes) // 4
    full, piece = tokenizer.decode([codes, codes[:short]], [len(codes) * model.config.samples_per_frame - 5, 7])
    assert (len(full), len(piece)) == (len(codes) * model.config.samples_per_frame - 5, 7)
    padded = codes.clone()
    padded[short:] = tokenizer.spec.pad_code
    with torch.no_grad():
        stacked = model.decode_hidden(model.quantizer.fold().decode(torch.stack((codes, padded))))
    alone = tokenizer.decode([codes[:short]])[0]
    assert (stacked[0, : len(full)] - full).abs().max() <= 1e-5
    assert (stacked[1, : len(alone)] - alone).abs().max() <= 1e-5


def test_the_public_axis_order_is_codebooks_batch_frames(fixture: dict[str, Any]) -> None:
    codes_BTK = codes_from_public(fixture["batch"]["codes"])
    items = len(fixture["batch"]["wav_lengths"])
    books = fixture["config"]["quantizer_kwargs"]["num_quantizers"]
    assert codes_BTK.shape == (items, fixture["batch"]["codes"].shape[2], books)


# 10. Causality, blocks, folding


def test_later_samples_do_not_change_earlier_codes(
    model: CatModel, tokenizer: CatTokenizer, wave: Tensor, codes: Tensor
) -> None:
    frames = len(codes) * 2 // 3
    cut = wave.clone()
    cut[frames * model.config.samples_per_frame :] = 0
    changed = tokenizer.encode([cut])[0]
    assert torch.equal(changed[:frames], codes[:frames])
    assert not torch.equal(changed[frames:], codes[frames:])


def test_blocked_attention_equals_dense(model: CatModel, wave: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = [stage.context for stage in model.encoder if isinstance(stage, Transformer)]
    with torch.no_grad():
        blocked = model.encode_hidden(wave[None])
        monkeypatch.setattr("moss.tokenizer.transformer.windowed_attention", _dense_attention)
        dense = model.encode_hidden(wave[None])
    assert (blocked - dense).abs().max() <= 1e-5
    rates = len(wave) / model.config.samples_per_frame
    assert rates > contexts[-1], "the fixture must outlast the window"


def _dense_attention(
    query: Tensor, keys: Tensor, values: Tensor, context: int, *, filling: list[int] | None = None
) -> Tensor:
    assert filling is None
    at = torch.arange(keys.shape[2] - query.shape[2], keys.shape[2])
    delta = at[:, None] - torch.arange(keys.shape[2])
    return F.scaled_dot_product_attention(query, keys, values, (delta >= 0) & (delta < context))


def test_folded_quantizer_equals_unfolded(fixture: dict[str, Any], model: CatModel, codes: Tensor) -> None:
    hidden = published(fixture["encoder_hidden_states"])
    folded = model.quantizer.fold()
    with torch.no_grad():
        plain = model.quantizer(hidden)
    assert torch.equal(folded.encode(hidden), plain.codes_BTK)
    assert torch.equal(plain.codes_BTK[0], codes)
    assert (folded.decode(plain.codes_BTK) - plain.quantized_BTD).abs().max() <= 1e-5
    expected = published(fixture["trace"]["quantizer.decode_codes"])
    assert (folded.decode(codes[None]) - expected).abs().max() <= 1e-5
