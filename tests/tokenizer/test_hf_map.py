"""Published names, lazy and strict loading, and errors that list every key."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from moss.config.load_tokenizer import load_tokenizer_config
from moss.config.tokenizer import Part
from moss.config.tokenizer_inventory import state_shapes
from moss.errors import CheckpointError
from moss.tokenizer.cat import CatModel
from moss.tokenizer.hf_map import (
    StoredState,
    canonical_key,
    key_48khz,
    load_state,
    match_keys,
    read_weights,
    write_weights,
)
from tests.parity.fixture_files import load_fixture
from tests.tokenizer.conftest import small_model
from tests.tokenizer.published import Generation, small_config, small_state

STEM = "encoder.1.transformer.layers.0."


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        (STEM + "self_attn.in_proj_weight", STEM + "self_attn.in_projs.0.weight"),
        (STEM + "self_attn.in_proj.weight", STEM + "self_attn.in_projs.0.weight"),
        (STEM + "self_attn.out_proj.weight", STEM + "self_attn.out_projs.0.weight"),
        (STEM + "self_attn.in_projs.0.weight", STEM + "self_attn.in_projs.0.weight"),
        (STEM + "ffn.0.weight", STEM + "linear1.weight"),
        (STEM + "ffn.2.weight", STEM + "linear2.weight"),
        ("quantizer.input_proj.weight_g", "quantizer.input_proj.parametrizations.weight.original0"),
        ("quantizer.quantizers.3.in_proj.weight_v", "quantizer.quantizers.3.in_proj.parametrizations.weight.original1"),
        ("quantizer.quantizers.3.in_proj.bias", "quantizer.quantizers.3.in_proj.bias"),
        ("encoder.1.input_proj.weight", "encoder.1.input_proj.weight"),
    ],
)
def test_names_of_every_generation(published: str, ours: str) -> None:
    assert canonical_key(published) == ours


def legacy_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for key, value in state.items():
        key = key_48khz(key).replace(".self_attn.in_proj.weight", ".self_attn.in_proj_weight")
        key = key.replace("parametrizations.weight.original0", "weight_g")
        renamed[key.replace("parametrizations.weight.original1", "weight_v")] = value
    return renamed


def test_legacy_names_load_the_same_weights(model: CatModel) -> None:
    state = model.state_dict()
    legacy = legacy_names(state)
    assert not set(legacy) & {key for key in state if "self_attn" in key or "original" in key}
    other = small_model(1)
    load_state(other, legacy, "legacy")
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())


LEGACY = {
    "in_proj_weight": (".self_attn.in_projs.0.weight", ".self_attn.in_proj_weight"),
    "in_proj.weight": (".self_attn.in_projs.0.weight", ".self_attn.in_proj.weight"),
    "out_proj.weight": (".self_attn.out_projs.0.weight", ".self_attn.out_proj.weight"),
    "weight_g": (".parametrizations.weight.original0", ".weight_g"),
    "weight_v": (".parametrizations.weight.original1", ".weight_v"),
    "ffn.0": (".linear1.weight", ".ffn.0.weight"),
    "ffn.2": (".linear2.weight", ".ffn.2.weight"),
}


@pytest.mark.parametrize("name", LEGACY)
def test_each_legacy_name_alone(model: CatModel, name: str) -> None:
    ours, theirs = LEGACY[name]
    state = {key.replace(ours, theirs): value for key, value in model.state_dict().items()}
    assert sum(theirs in key for key in state) >= 2
    other = small_model(1)
    load_state(other, state, name)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in other.state_dict().items())


def test_wrong_keys_are_all_listed(model: CatModel) -> None:
    state = dict(model.state_dict())
    bias = state.pop("quantizer.input_proj.bias")
    state["encoder.9.typo"] = bias
    state["quantizer.output_proj.bias"] = torch.zeros(99)
    state[STEM + "ffn.0.weight"] = state[STEM + "linear1.weight"]
    with pytest.raises(CheckpointError) as caught:
        load_state(model, state, "weights.safetensors")
    text = str(caught.value)
    headline = (
        "weights.safetensors: not the weights of this tokenizer; check that the tokenizer settings fit the file\n"
    )
    assert text.startswith(headline), "some wrong keys do not make it another network"
    assert "1 missing:\n    quantizer.input_proj.bias" in text
    assert "1 unknown:\n    encoder.9.typo" in text
    assert "1 of another shape:\n    quantizer.output_proj.bias expected (12,), got (99,)" in text
    assert f"1 given twice:\n    {STEM}linear1.weight (again as {STEM}ffn.0.weight)" in text


def test_long_lists_say_how_many_more(model: CatModel) -> None:
    with pytest.raises(CheckpointError, match=r"and \d+ more"):
        load_state(model, {}, "empty")


def test_sharded_folder(model: CatModel, tmp_path: Path) -> None:
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    names = sorted(state)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in halves.items():
        save_file({key: state[key] for key in keys}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: file for file, keys in halves.items() for key in keys}}))
    assert set(read_weights(tmp_path)) == set(state)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"b.safetensors: no such file"):
        read_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": {"x": "../b.safetensors"}}))
    with pytest.raises(CheckpointError, match="shards must lie beside the index"):
        read_weights(tmp_path)
    index.write_text("{")
    with pytest.raises(CheckpointError, match="no readable weight_map"):
        read_weights(tmp_path)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"x": torch.zeros(1)}, tmp_path / name)
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"b.safetensors: x is in another shard too"):
        read_weights(tmp_path)


def test_file_that_is_no_safetensors(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"not a header")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_weights(tmp_path / "x.safetensors")


class Counted(StoredState):
    """Notes what is read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.read: list[str] = []

    def __getitem__(self, key: str) -> torch.Tensor:
        self.read.append(key)
        return super().__getitem__(key)


@pytest.mark.parametrize("part", [Part.encoder, Part.decoder])
def test_half_a_tokenizer_reads_half_the_file(model: CatModel, tmp_path: Path, part: Part) -> None:
    write_weights(tmp_path / "w.safetensors", model)
    half = CatModel(dataclasses.replace(model.config, part=part))
    stored = Counted(tmp_path / "w.safetensors")
    load_state(half, stored, "w.safetensors")
    assert sorted(stored.read) == sorted(half.state_dict())
    assert len(stored.read) < len(stored)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in half.state_dict().items())


def test_half_a_tokenizer_is_strict_about_its_half(model: CatModel) -> None:
    half = CatModel(dataclasses.replace(model.config, part=Part.encoder))
    state = dict(model.state_dict())
    del state["encoder.1.input_proj.weight"], state["decoder.0.input_proj.weight"]
    with pytest.raises(CheckpointError) as caught:
        load_state(half, state, "w")
    assert "1 missing:\n    encoder.1.input_proj.weight" in str(caught.value)
    assert "decoder.0" not in str(caught.value)
    state = half.state_dict() | {"decoder.9.typo": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"1 unknown:\n    decoder.9.typo"):
        load_state(half, state, "w")
    load_state(half, half.state_dict(), "a file of this half alone")


def test_integers_are_no_weights(model: CatModel) -> None:
    state = {key: value.long() for key, value in model.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=r"w: encoder.1.input_proj.weight is torch.int64; expected floating point"
    ):
        load_state(model, state, "w")


def test_half_width_weights_are_widened(model: CatModel) -> None:
    other = small_model(1)
    load_state(other, {key: value.bfloat16() for key, value in model.state_dict().items()}, "w")
    for key, value in other.state_dict().items():
        assert value.dtype is torch.float32
        assert torch.equal(value, model.state_dict()[key].bfloat16().float())


MANIFESTS = {"cat_full": "manifest_v1", "cat_v2": "manifest_v2", "cat_nano": "manifest_nano"}


def published_shapes(preset: str) -> dict[str, tuple[int, ...]]:
    manifest = load_fixture("ref_tokenizer.pt.gz")[MANIFESTS[preset]]
    return {key: tuple(shape) for key, shape in manifest.items()}


@pytest.mark.parametrize("preset", MANIFESTS)
def test_strict_load_accepts_exactly_the_published_inventory(preset: str) -> None:
    """Meta tensors have names and shapes, but no gigabytes."""
    with torch.device("meta"):
        model = CatModel(load_tokenizer_config(preset))
        state = {key: torch.empty(shape) for key, shape in published_shapes(preset).items()}
        load_state(model, state, preset)
        first, *_, last = state
        with pytest.raises(CheckpointError, match=f"1 missing:\n    {canonical_key(last)}"):
            load_state(model, {key: value for key, value in state.items() if key != last}, preset)
        with pytest.raises(CheckpointError, match=r"1 unknown:\n    extra"):
            load_state(model, state | {"extra": torch.empty(1)}, preset)
        with pytest.raises(CheckpointError, match=rf"1 of another shape:\n    {canonical_key(first)} expected"):
            load_state(model, state | {first: torch.empty(3, 3)}, preset)


@pytest.mark.parametrize("wanted", MANIFESTS)
@pytest.mark.parametrize("given", MANIFESTS)
def test_one_published_checkpoint_in_place_of_another(wanted: str, given: str) -> None:
    config = load_tokenizer_config(wanted)
    if wanted == given:
        assert len(match_keys(published_shapes(given), config, "f")) == len(published_shapes(given))
        return
    with pytest.raises(CheckpointError) as caught:
        match_keys(published_shapes(given), config, "f.safetensors")
    headline = str(caught.value).splitlines()[0]
    kinds = {"cat_full": "24 kHz mono tokenizer (v1)", "cat_v2": "48 kHz stereo", "cat_nano": "Nano"}
    assert headline.startswith(
        f"f.safetensors: not the weights of this tokenizer: it holds the published {kinds[given]}"
    )
    assert f"the settings describe the published {kinds[wanted]}" in headline
    assert headline.endswith(f"; use tokenizer={given}")


def test_other_networks_are_told_apart_too() -> None:
    state = small_state(small_config(Generation.v1))
    with pytest.raises(CheckpointError) as caught:
        match_keys({k: tuple(v.shape) for k, v in state.items()}, small_config(Generation.v2), "f")
    headline = str(caught.value).splitlines()[0]
    assert "it holds a Cat of the v1 form with " in headline
    assert "the settings describe a Cat of the v2 form (projections everywhere) with " in headline
    assert headline.endswith("; use the settings it was trained with")
    assert "encoder.3.input_proj.weight" in state_shapes(small_config(Generation.v2))
