"""Fingerprints: those of old hold, halves are recognised where that is honest."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moss.config.schema import to_plain
from moss.config.tokenizer import CatConfig, ComputeDtype, Part
from moss.errors import CheckpointError
from moss.tokenizer import interface
from moss.tokenizer.cat import CatModel, CatTokenizer
from moss.tokenizer.fingerprints import of_model, stream_identity
from moss.tokenizer.hf_map import write_weights
from tests.tokenizer.conftest import small_model, small_stereo_model

HALVES = (Part.encoder, Part.decoder)


def half(config: CatConfig, part: Part, file: Path) -> CatTokenizer:
    return CatTokenizer.load(replace(config, part=part), file)


def test_shards_and_checkpoints_from_before_keep_their_tokenizer() -> None:
    model = small_model()
    settings = to_plain(model.config)
    known = ("kind", "sampling_rate_hz", "samples_per_frame", "encoder", "decoder", "quantizer")
    name = "cat " + str({name: settings[name] for name in known})
    expected = interface.fingerprint(name, model.state_dict(), dtype="float32", batch_policy="single")
    assert of_model(model, None, torch.float32) == expected


def test_stereo_is_another_tokenizer() -> None:
    model = small_model()
    mono = of_model(model, None, torch.float32)
    model.config = replace(model.config, num_audio_channels=2)
    assert of_model(model, None, torch.float32) != mono
    assert stream_identity(model, torch.float32) != stream_identity(small_model(), torch.float32)
    assert stream_identity(small_stereo_model(), torch.float32) != stream_identity(model, torch.float32)


def test_the_arithmetic_counts_for_the_half_that_makes_codes() -> None:
    model = small_model()
    assert of_model(model, None, torch.bfloat16) != of_model(model, None, torch.float32)
    decoder = CatModel(replace(model.config, part=Part.decoder))
    assert of_model(decoder, None, torch.bfloat16) == of_model(decoder, None, torch.float32)
    configured = of_model(decoder, None, torch.float32)
    decoder.config = replace(decoder.config, compute_dtype=ComputeDtype.bf16)
    assert of_model(decoder, None, torch.float32) != configured


@pytest.mark.parametrize("part", HALVES)
@pytest.mark.parametrize("spelling", ["canonical", "legacy", "half as wide"])
def test_a_half_is_known_as_the_whole_whose_file_it_is_from(part: Part, spelling: str, tmp_path: Path) -> None:
    model, file = small_model(), tmp_path / "whole.safetensors"
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    if spelling == "legacy":
        state = {name.replace("in_projs.0.weight", "in_proj_weight"): value for name, value in state.items()}
    elif spelling == "half as wide":
        state = {name: value.bfloat16() for name, value in state.items()}
    save_file(state, file)
    whole = CatTokenizer.load(model.config, file)
    assert half(model.config, part, file).fingerprint == whole.fingerprint


@pytest.mark.parametrize("part", HALVES)
def test_a_half_alone_stands_for_itself(part: Part, tmp_path: Path) -> None:
    model, file = small_model(), tmp_path / "half.safetensors"
    whole = CatTokenizer(model).fingerprint
    alone = CatModel(replace(model.config, part=part))
    alone.load_state_dict({name: model.state_dict()[name] for name in alone.state_dict()})
    assert CatTokenizer(alone).fingerprint != whole
    write_weights(file, alone)
    loaded = half(model.config, part, file)
    assert loaded.fingerprint == CatTokenizer(alone).fingerprint
    # A file that holds only some of the other half does not say what the whole is.
    other = next(name for name in model.state_dict() if name not in alone.state_dict())
    save_file(load_file(file) | {other: model.state_dict()[other]}, file)
    assert half(model.config, part, file).fingerprint == loaded.fingerprint


def test_another_file_in_its_place_is_another_tokenizer(tmp_path: Path) -> None:
    file = tmp_path / "whole.safetensors"
    write_weights(file, small_model(0))
    tokenizer = half(small_model().config, Part.decoder, file)
    write_weights(file, small_model(1))
    fingerprints = [CatTokenizer(small_model(seed)).fingerprint for seed in (0, 1)]
    assert tokenizer.fingerprint not in fingerprints
    gone = half(small_model().config, Part.encoder, file)
    file.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        _ = gone.fingerprint
