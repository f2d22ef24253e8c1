import dataclasses
import json
import multiprocessing
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import webdataset

from moss.data import shard as shard_module
from moss.data.shard import ShardDataset, open_datasets, parse_codes
from moss.data.shard_index import INDEX_NAME, dataset_fingerprint
from moss.data.shard_writer import to_npy, write_shards
from moss.data.verify import verify_shards
from moss.errors import DataError
from tests.recordings import card, coded_utterances


@pytest.fixture
def folder(tmp_path):
    write_shards(tmp_path / "shards", coded_utterances(10), card(), utterances_per_shard=4)
    return tmp_path / "shards"


def _same(dataset, coded):
    for position, item in enumerate(coded):
        example = dataset.example(position)
        assert example.id == item.utterance.id
        assert example.text == item.utterance.text
        assert (example.language, example.speaker, example.split) == (
            item.utterance.language, item.utterance.speaker, item.utterance.split,
        )  # fmt: skip
        assert example.num_samples == item.num_samples
        assert example.extra == item.utterance.extra
        assert example.codes.dtype == np.uint16
        np.testing.assert_array_equal(example.codes, item.codes)


def test_examples_come_back_as_written(folder):
    dataset = ShardDataset(folder)
    assert len(dataset) == 10
    assert [entry.frames for entry in dataset.entries] == list(range(1, 11))
    assert dataset.tokenizer == card()
    assert dataset.fingerprint == dataset.index.dataset_fingerprint
    _same(dataset, coded_utterances(10))
    with pytest.raises(IndexError):
        dataset.example(10)


def test_codes_belong_to_the_caller(folder):
    dataset = ShardDataset(folder)
    dataset.example(3).codes[:] = 0
    _same(dataset, coded_utterances(10))


def test_stock_webdataset_reads_the_same(folder):
    coded = coded_utterances(10)
    tars = sorted(str(path) for path in folder.glob("*.tar"))
    assert len(tars) == 3
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [item.utterance.id for item in coded]
    for sample, item in zip(samples, coded, strict=True):
        assert sample["json"]["text"] == item.utterance.text
        assert sample["json"]["num_samples"] == item.num_samples
        assert sample["json"]["licence"] == "CC0"
        assert sample["codes.npy"].dtype == np.uint16
        np.testing.assert_array_equal(sample["codes.npy"], item.codes)


def test_threads_pickled_copies_and_forked_children_read_alike(folder):
    dataset = ShardDataset(folder)
    coded = coded_utterances(10)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(dataset.example, list(range(10)) * 20))
    for position, example in enumerate(read):
        np.testing.assert_array_equal(example.codes, coded[position % 10].codes)
    copy = pickle.loads(pickle.dumps(dataset))
    _same(copy, coded)
    with multiprocessing.get_context("fork").Pool(2) as processes:
        for example, item in zip(processes.map(dataset.example, range(10)), coded, strict=True):
            np.testing.assert_array_equal(example.codes, item.codes)
    dataset.close()
    _same(dataset, coded)


def test_more_shards_than_open_files(folder, monkeypatch):
    monkeypatch.setattr(shard_module, "_MAX_OPEN_FILES", 1)
    dataset = ShardDataset(folder)
    _same(dataset, coded_utterances(10))
    assert len(dataset._descriptors) == 1


def test_a_folder_without_index_is_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"index\.json does not exist: the shards are missing or unfinished; run data_prep/03"
    ):
        ShardDataset(tmp_path)


def test_missing_truncated_and_grown_shards_are_refused_at_once(folder):
    path = folder / "shard-000001.tar"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"shard-000001\.tar: truncated: \d+ bytes, the index says \d+; restore it, or"):
        ShardDataset(folder)
    path.write_bytes(content + b"x")
    with pytest.raises(DataError, match=r"shard-000001\.tar: longer than written"):
        ShardDataset(folder)
    path.unlink()
    with pytest.raises(DataError, match=r"shard-000001\.tar is missing; restore it or run"):
        ShardDataset(folder)


def test_a_shard_that_shrinks_while_open_names_the_utterance(folder):
    dataset = ShardDataset(folder)
    path = folder / "shard-000002.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"shard-000002\.tar:utt008: truncated: bytes \d+\.\.\d+ wanted, \d+ there"):
        dataset.example(8)


def test_a_shard_that_vanishes_names_the_utterance(folder):
    dataset = ShardDataset(folder)
    (folder / "shard-000000.tar").unlink()
    with pytest.raises(DataError, match=r"shard-000000\.tar:utt000: cannot be read: No such file"):
        dataset.example(0)


def _overwrite(folder, position, member, content):
    dataset = ShardDataset(folder)
    entry, shard = dataset.entries[position], dataset._shards[position]
    offset, length = getattr(entry, f"{member}_offset"), getattr(entry, f"{member}_bytes")
    assert len(content) == length
    with open(folder / shard.file, "rb+") as file:
        file.seek(offset)
        file.write(content)


def _member(folder, position, member):
    dataset = ShardDataset(folder)
    entry = dataset.entries[position]
    with open(folder / dataset._shards[position].file, "rb") as file:
        file.seek(getattr(entry, f"{member}_offset"))
        return file.read(getattr(entry, f"{member}_bytes"))


def test_damaged_members_name_the_utterance(folder):
    original = _member(folder, 5, "json")
    _overwrite(folder, 5, "json", b"x" * len(original))
    with pytest.raises(DataError, match=r"shard-000001\.tar:utt005: the JSON member is damaged"):
        ShardDataset(folder).example(5)
    _overwrite(folder, 5, "json", original.replace(b"Sentence 5", b"Sentence 6"))
    with pytest.raises(DataError, match=r"utt005: the shard holds .*Sentence 6.*, the index says .*Sentence 5"):
        ShardDataset(folder).example(5)
    _overwrite(folder, 5, "json", original)
    codes = _member(folder, 5, "codes")
    _overwrite(folder, 5, "codes", b"x" * len(codes))
    with pytest.raises(DataError, match=r"utt005: codes are not a \.npy array"):
        ShardDataset(folder).example(5)
    _overwrite(folder, 5, "codes", codes[:-2] + (16).to_bytes(2, "little"))
    with pytest.raises(DataError, match=r"utt005: code 16 is outside 0\.\.15"):
        ShardDataset(folder).example(5)


@pytest.mark.parametrize(
    "codes", [np.zeros((2, 2), np.uint16), np.zeros((3, 3), np.uint16), np.zeros((2, 3), np.int64)]
)
def test_codes_of_another_shape_or_type_are_refused(codes):
    import io

    buffer = io.BytesIO()
    np.save(buffer, codes)
    with pytest.raises(DataError, match=r"here: codes are .*, expected uint16 \(2, 3\) \(frames, codebooks\)"):
        parse_codes(buffer.getvalue(), 2, card(), "here")
    assert parse_codes(to_npy(np.zeros((2, 3), np.int64)), 2, card(), "here").dtype == np.uint16


def test_object_arrays_are_never_unpickled():
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"here: codes are not a \.npy array"):
        parse_codes(buffer.getvalue(), 1, card(), "here")


def test_a_mixture_needs_one_tokenizer(folder, tmp_path):
    write_shards(tmp_path / "more", coded_utterances(2, "more"), card())
    write_shards(tmp_path / "other", coded_utterances(2), card("0" * 16))
    assert [len(dataset) for dataset in open_datasets([folder, tmp_path / "more"])] == [10, 2]
    message = (
        r"two tokenizers in one mixture: .*shards is fake f{16} \(3 codebooks\), .*other is fake 0{16} \(3 codebooks\)"
    )
    with pytest.raises(DataError, match=message):
        open_datasets([folder, tmp_path / "other"])
    with pytest.raises(DataError, match="no shard folders given"):
        open_datasets([])


def _changed_entry(index, **extra):
    """The index with another `extra` in its first entry, or with none."""
    entry = index["shards"][0]["utterances"][0]
    del entry["extra"]
    entry |= extra
    return index


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda index: index | {"format_version": 9},
            r"format_version 9, this program reads 1 and 2; write the shards again",
        ),
        (lambda index: {k: v for k, v in index.items() if k != "tokenizer"}, r"damaged index \('tokenizer'\)"),
        (lambda index: index | {"surprise": 1}, r"damaged index .*surprise"),
        (lambda index: _changed_entry(index, extra="none"), r"damaged index \(extra is 'none', expected an object\)"),
        (lambda index: _changed_entry(index), r"damaged index \('extra'\)"),
        (lambda index: index | {"frames": "many"}, r"damaged index \(frames is 'many', expected int\)"),
    ],
)
def test_a_damaged_index_is_refused(folder, change, message):
    path = folder / INDEX_NAME
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=message):
        ShardDataset(folder)


def _first_version(folder):
    """Make the index of a folder what version 1 wrote."""
    path = folder / INDEX_NAME
    entries = [dataclasses.replace(entry, extra=None) for entry in ShardDataset(folder).entries]
    index = json.loads(path.read_text()) | {"format_version": 1}
    index["dataset_fingerprint"] = dataset_fingerprint(card(), entries)
    for shard in index["shards"]:
        for entry in shard["utterances"]:
            del entry["extra"]
    path.write_text(json.dumps(index))


def _with_references(*ids):
    """Three utterances; the first refers to the others."""
    coded = coded_utterances(3)
    first = coded[0]
    utterance = dataclasses.replace(first.utterance, extra=first.utterance.extra | {"reference_ids": list(ids)})
    return [dataclasses.replace(first, utterance=utterance), *coded[1:]]


def test_an_index_of_version_1_opens_and_takes_extra_from_the_tar(folder):
    _first_version(folder)
    dataset = ShardDataset(folder)
    assert dataset.entries[3].extra is None
    assert [dataset.extra(n) for n in range(10)] == [item.utterance.extra for item in coded_utterances(10)]
    _same(dataset, coded_utterances(10))
    assert verify_shards(folder)[1] == []
    dataset = ShardDataset(folder)
    (folder / "shard-000002.tar").unlink()
    with pytest.raises(DataError, match=r"shard-000002\.tar:utt008: cannot be read"):
        dataset.extra(8)


def test_writing_again_over_version_1_adds_extra_to_the_index_only(folder):
    _first_version(folder)
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    index = write_shards(folder, coded_utterances(10), card(), utterances_per_shard=4)
    assert index.format_version == 2
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")} == before
    assert [entry.extra for entry in ShardDataset(folder).entries] == [c.utterance.extra for c in coded_utterances(10)]
    assert verify_shards(folder)[1] == []


def test_extra_is_known_without_the_tars(folder):
    dataset = ShardDataset(folder)
    for path in folder.glob("*.tar"):
        path.unlink()
    assert dataset.extra(7) == {"instruction": "read 7"}


@pytest.mark.parametrize("version", [1, 2])
def test_references_are_codes_of_the_same_folder(tmp_path, version):
    coded = _with_references("utt002", None, "utt001")
    write_shards(tmp_path, coded, card(), utterances_per_shard=1)
    if version == 1:
        _first_version(tmp_path)
    dataset = ShardDataset(tmp_path)
    assert dataset.references(0) == [2, None, 1]
    first, nothing, second = dataset.example(0).references
    assert nothing is None
    np.testing.assert_array_equal(first, coded[2].codes)
    np.testing.assert_array_equal(second, coded[1].codes)
    assert dataset.example(1).references == []


def test_a_reference_to_nothing_names_shard_utterance_and_id(tmp_path):
    write_shards(tmp_path, _with_references("utt009"), card())
    with pytest.raises(DataError, match=r"shard-000000\.tar:utt000: reference 'utt009' is no utterance of .*; write"):
        ShardDataset(tmp_path).example(0)
    assert verify_shards(tmp_path)[1] == ["shard-000000.tar:utt000: reference 'utt009' is no utterance of this folder"]


@pytest.mark.parametrize("ids", ["utt001", [3], {"a": 1}])
def test_reference_ids_that_are_no_list_of_ids(tmp_path, ids):
    coded = coded_utterances(1)
    utterance = dataclasses.replace(coded[0].utterance, extra={"reference_ids": ids})
    write_shards(tmp_path, [dataclasses.replace(coded[0], utterance=utterance)], card())
    with pytest.raises(DataError, match=r"tar:utt000: reference_ids is .*, expected a list of ids and nulls"):
        ShardDataset(tmp_path).example(0)


def test_tars_are_plain(folder):
    with tarfile.open(folder / "shard-000000.tar") as tar:
        names = tar.getnames()
    assert names[:2] == ["utt000.json", "utt000.codes.npy"]
    assert len(names) == 8
