"""Checkpoint folders that cannot be used: every error names file, key and remedy, and nothing in them is executed."""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moss.errors import CheckpointError
from moss.model.checkpoint import load_generator
from moss.model.convert import export_folder, import_folder
from tests.model.published_folders import write_published

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def refused(folder: Path, message: str) -> None:
    """Loading and importing the folder both fail with this message, and leave nothing."""
    with pytest.raises(CheckpointError, match=message):
        load_generator(folder)
    with pytest.raises(CheckpointError, match=message):
        import_folder(folder, folder.parent / "ours")
    assert not (folder.parent / "ours").exists()


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_published(tmp_path / "published", "local", shards=2)


@pytest.fixture
def single(tmp_path: Path) -> Path:
    return write_published(tmp_path / "published", "delay")


def test_a_missing_shard(sharded: Path) -> None:
    (sharded / SECOND).unlink()
    refused(
        sharded,
        rf"safetensors\.index\.json: names 2 shards, but these are not in the folder: {SECOND}; fetch them again",
    )


def test_a_missing_index(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    refused(sharded, rf"has {FIRST}, but no model\.safetensors\.index\.json .* fetch the index too")


def test_no_weights_at_all(single: Path) -> None:
    (single / "model.safetensors").unlink()
    refused(single, r"published: no model\.safetensors; the checkpoint is incomplete")


@pytest.mark.parametrize(
    ("kept", "reason"),
    [(0, "0 bytes do not hold its header"), (6, "6 bytes"), (200, "200 bytes do not hold its header")],
)
def test_a_truncated_header(single: Path, kept: int, reason: str) -> None:
    path = single / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(single, rf"model\.safetensors: not a readable safetensors file \({reason}.*fetch or export it again")


def test_truncated_data(sharded: Path) -> None:
    path = sharded / SECOND
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    refused(
        sharded, rf"{SECOND}: not a readable safetensors file \(truncated: \S+ ends at byte {len(content)}, the file"
    )
    path.write_bytes(content + b"more")
    refused(sharded, r"4 bytes follow the last tensor")


@pytest.mark.parametrize(
    "header",
    [
        b"not json at all!",
        b"[]      ",
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',
        b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"shape":[2],"data_offsets":[0,8]}}',
        b'{"a":7}',
    ],
)
def test_a_header_that_makes_no_sense(single: Path, header: bytes) -> None:
    (single / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    refused(single, r"model\.safetensors: not a readable safetensors file \(.*fetch or export it again")


class _Bomb:
    """Pickled so that unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_beside_no_safetensors(single: Path, name: str) -> None:
    (single / "model.safetensors").unlink()
    (single / name).write_bytes(pickle.dumps(_Bomb(single / "executed")))
    refused(single, rf"no model\.safetensors, only {name}: pickles can run programs and are never opened here; ask for")
    assert not (single / "executed").exists()


@pytest.mark.parametrize("zipped", [False, True])
def test_a_pickle_under_the_name_of_safetensors(single: Path, zipped: bool) -> None:
    path = single / "model.safetensors"
    if zipped:
        torch.save({"weight": torch.zeros(3)}, path)
    else:
        path.write_bytes(pickle.dumps(_Bomb(single / "executed")))
    refused(single, r"model\.safetensors: a pickle, not a safetensors file; .* never opened here: ask its author")
    assert not (single / "executed").exists()


def test_mixed_dtypes(sharded: Path) -> None:
    state = load_file(sharded / FIRST)
    odd = [name for name in state if name.endswith("norm.weight")][:2]
    save_file({name: tensor.float() if name in odd else tensor for name, tensor in state.items()}, sharded / FIRST)
    lines = "".join(rf"\n  {name} is F32, most others are BF16" for name in sorted(odd)).replace(".", r"\.")
    refused(
        sharded,
        rf"index\.json: tensors of mixed or unsupported dtypes; export the checkpoint with one dtype.*:{lines}$",
    )


def test_quantised_weights(single: Path) -> None:
    path = single / "model.safetensors"
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(path).items()}, path)
    refused(single, r"mixed or unsupported dtypes; .*\n  the tensors are I8; expected one of F32, F16, BF16, F64")


def test_an_index_that_names_what_its_shard_lacks(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    moved = next(name for name, file in content["weight_map"].items() if file == FIRST)
    content["weight_map"] |= {moved: SECOND, "new.weight": FIRST}
    index.write_text(json.dumps(content))
    refused(
        sharded,
        r"index\.json: the index does not fit its shards; fetch the checkpoint again:\n  "
        rf"{moved} should be in {SECOND}, but is in {FIRST}\n  new\.weight should be in {FIRST}, but is missing",
    )
    del content["weight_map"][moved], content["weight_map"]["new.weight"]
    index.write_text(json.dumps(content))
    refused(sharded, rf"{moved} is in {FIRST}, but not in the index")


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    state = load_file(sharded / SECOND)
    name, tensor = next(iter(load_file(sharded / FIRST).items()))
    save_file(state | {name: tensor}, sharded / SECOND)
    refused(sharded, rf"{name} is in {FIRST} and in {SECOND}")


@pytest.mark.parametrize("shard", ["../elsewhere.safetensors", "/etc/passwd", "weights.bin"])
def test_an_index_that_points_elsewhere(sharded: Path, shard: str) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["x"] = shard
    index.write_text(json.dumps(content))
    refused(sharded, rf"shards must be \.safetensors files beside the index, got '{shard}'")


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_an_index_that_cannot_be_read(sharded: Path, content: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(content)
    refused(sharded, r"model\.safetensors\.index\.json: no readable weight_map \(.*\); fetch the checkpoint again")


def test_two_sets_of_weights(sharded: Path) -> None:
    (sharded / "model.safetensors").write_bytes((sharded / FIRST).read_bytes())
    refused(
        sharded, r"has both model\.safetensors and model\.safetensors\.index\.json; delete the one that is out of date"
    )


def test_missing_and_unexpected_tensors_are_all_listed(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    for file in (FIRST, SECOND):
        state = load_file(sharded / file)
        name = next(iter(state))
        state[f"old.{name}"] = state.pop(name)
        save_file(state, sharded / file)
        content["weight_map"] = dict(content["weight_map"]) | {f"old.{name}": file}
        del content["weight_map"][name]
    index.write_text(json.dumps(content))
    refused(
        sharded, r"index\.json: weights of another model:\n  missing \S+\n  missing \S+\n  unexpected old\.\S+\n  unexp"
    )


def test_tied_weights_that_differ(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "published", "local_v15")
    path = folder / "model.safetensors"
    state = load_file(path)
    state["audio_lm_heads.1.weight"][2, 3] += 1
    save_file(state, path)
    refused(
        folder, r"must be the same are not; export .*:\n  audio_lm_heads\.1\.weight differs from audio_embeddings\.1\.w"
    )


def test_a_missing_config(single: Path) -> None:
    (single / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"published: no config\.json, so this is not a published checkpoint"):
        import_folder(single, single.parent / "ours")
    with pytest.raises(CheckpointError, match=r"published: no moss\.json, so this is not a checkpoint folder"):
        load_generator(single)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": ', r"config\.json: cannot be read as JSON .*; fetch it again"),
        ("[1]", r"config\.json: expected a JSON object, got list; fetch it again"),
        (
            '{"model_type": "llama"}',
            r"published/config\.json: model_type 'llama' is no generator of this family; expected one of",
        ),
        (
            '{"model_type": "moss_tts_delay", "n_vq": 3, "language_config": {}}',
            r"published/config\.json: language_config\.vocab_size, .* missing",
        ),
    ],
)
def test_a_config_that_is_no_config(single: Path, content: str, message: str) -> None:
    (single / "config.json").write_text(content)
    refused(single, message)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_published(tmp_path / "published", "delay")
    (folder / "processing_moss_tts.py").unlink()
    code = f"open({str(tmp_path / 'executed')!r}, 'w').close()\n"
    for name in ("__init__.py", "modeling_moss_tts.py", "configuration_moss_tts.py", "sitecustomize.py", "json.py"):
        (folder / name).write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "configuration_moss_tts.Config", "AutoModel": "modeling_moss_tts.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "training_args.bin").write_bytes(pickle.dumps(_Bomb(tmp_path / "executed")))
    monkeypatch.chdir(folder)
    before = set(sys.modules)
    load_generator(folder)
    import_folder(folder, tmp_path / "ours")
    load_generator(tmp_path / "ours")
    export_folder(tmp_path / "ours", tmp_path / "again")
    assert not (tmp_path / "executed").exists()
    assert not {name for name in set(sys.modules) - before if "moss_tts" in name}
    assert (tmp_path / "again" / "modeling_moss_tts.py").read_text() == code
