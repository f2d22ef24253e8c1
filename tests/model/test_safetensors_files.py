"""Our files are safetensors files, and safetensors files are read as they are."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from moss.errors import CheckpointError
from moss.model.safetensors_files import dtype_problems, open_weights, read_header, write_weights

STATE: dict[str, Tensor] = {
    "b.weight": torch.arange(6.0).reshape(2, 3),
    "a.transposed": torch.arange(6.0).reshape(2, 3).T,
    "a.halved": torch.randn(5, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "größe": torch.tensor([True, False, True]),
}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) and first[name].dtype == second[name].dtype for name in first
    )


def test_what_we_write_the_library_reads(tmp_path: Path) -> None:
    written = []
    write_weights(tmp_path, STATE, metadata={"format": "pt", "note": "ü"}, advance=written.append)
    assert same(load_file(tmp_path / "model.safetensors"), STATE)
    assert sum(written) == sum(tensor.numel() * tensor.element_size() for tensor in STATE.values())
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "note": "ü"}
    (header,) = open_weights(tmp_path).files
    assert [tensor.name for tensor in header.tensors if tensor.num_bytes] == [n for n in STATE if n != "empty"]
    assert len(header.header.encode()) % 8 == 0


def test_what_the_library_writes_we_read(tmp_path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in STATE.items()}, tmp_path / "model.safetensors")
    weights = open_weights(tmp_path)
    assert same({name: tensor.read() for name, tensor in weights.tensors.items()}, STATE)
    content = (tmp_path / "model.safetensors").read_bytes()
    for tensor in weights.tensors.values():
        assert b"".join(tensor.chunks()) == content[tensor.offset : tensor.offset + tensor.num_bytes]


def test_views_of_one_tensor_and_tied_ones_are_written_each(tmp_path: Path) -> None:
    stacked = torch.arange(12.0).reshape(4, 3)
    state = {"first": stacked[:2], "second": stacked[2:], "tied": stacked[2:]}
    write_weights(tmp_path, state)
    assert same(load_file(tmp_path / "model.safetensors"), state)


def test_shards_hold_at_most_what_is_asked(tmp_path: Path) -> None:
    state = {f"t{i}": torch.full((10,), float(i)) for i in range(7)} | {"large": torch.zeros(100)}
    write_weights(tmp_path, state, max_shard_bytes=85)
    sizes = [[tensor.num_bytes for tensor in file.tensors] for file in open_weights(tmp_path).files]
    assert sizes == [[40, 40], [40, 40], [40, 40], [40], [400]]
    assert same({name: tensor.read() for name, tensor in open_weights(tmp_path).tensors.items()}, state)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["large"] == "model-00005-of-00005.safetensors"
    assert index["metadata"] == {"total_size": 7 * 40 + 400}


def test_equal_means_dtype_shape_and_bytes(tmp_path: Path) -> None:
    state = {"a": torch.ones(4), "b": torch.ones(4), "c": torch.ones(2, 2), "d": torch.tensor([1.0, 1, 1, 2])}
    write_weights(tmp_path, state | {"e": torch.ones(4).to(torch.int32)})
    stored = open_weights(tmp_path).tensors
    assert [stored["a"].equals(stored[name]) for name in "abcde"] == [True, True, False, False, False]


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    write_weights(tmp_path, {"a": torch.ones(100)})
    path = tmp_path / "model.safetensors"
    tensor = read_header(path).tensors[0]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="a ends 8 bytes early"):
        list(tensor.chunks())
    with pytest.raises(CheckpointError, match="a ends before its 400 bytes"):
        tensor.read()


def test_dtypes(tmp_path: Path) -> None:
    write_weights(tmp_path, {"a": torch.ones(1), "b": torch.ones(1), "c": torch.ones(1).half()})
    tensors = open_weights(tmp_path).tensors
    assert dtype_problems(tensors) == ["c is F16, most others are F32"]
    assert dtype_problems({name: tensors[name] for name in "ab"}) == []
    assert dtype_problems({}) == []
