import dataclasses
import json
import os

import numpy as np
import pytest

from moss.data import shard_writer
from moss.data.shard import ShardDataset
from moss.data.shard_index import UtteranceEntry, dataset_fingerprint, read_index
from moss.data.shard_writer import CodedUtterance, write_shards
from moss.data.verify import verify_shards
from moss.errors import DataError
from tests.recordings import card, coded_utterances, leftovers


def _write(folder, count=10, per_shard=4, **keywords):
    return write_shards(folder, coded_utterances(count, **keywords), card(), per_shard)


def test_bytes_depend_on_the_content_only(tmp_path):
    _write(tmp_path / "a")
    _write(tmp_path / "b")
    for name in os.listdir(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(os.listdir(tmp_path / "a")) == [
        "index.json", "shard-000000.tar", "shard-000001.tar", "shard-000002.tar",
    ]  # fmt: skip


def test_the_index_adds_up(tmp_path):
    index = _write(tmp_path / "a")
    assert index == read_index(tmp_path / "a")
    assert (index.utterances, index.frames, len(index.shards)) == (10, 55, 3)
    assert verify_shards(tmp_path / "a")[1] == []
    assert json.loads((tmp_path / "a" / "index.json").read_text())["tokenizer"]["fingerprint"] == "f" * 16


def test_the_fingerprint_ignores_sharding_and_follows_content(tmp_path):
    first = _write(tmp_path / "a", per_shard=4).dataset_fingerprint
    assert _write(tmp_path / "b", per_shard=100).dataset_fingerprint == first
    assert _write(tmp_path / "c", count=9).dataset_fingerprint != first
    entries = ShardDataset(tmp_path / "a").entries
    assert dataset_fingerprint(card(), reversed(entries)) == first
    assert dataset_fingerprint(card("0" * 16), entries) != first
    longer = [dataclasses.replace(entries[0], text="other"), *entries[1:]]
    assert dataset_fingerprint(card(), longer) != first


def test_the_fingerprint_follows_what_extra_adds_to_a_prompt():
    entry = UtteranceEntry(id="a", frames=1, text="t", language="", speaker="", split="", json_offset=0, json_bytes=0,
                           codes_offset=0, codes_bytes=0)  # fmt: skip
    first = dataset_fingerprint(card(), [entry])
    # What an index of version 1 holds, and what has no say in training, keep the fingerprint of version 1.
    assert first == "bffa37028b8b7930"
    for same in ({}, {"downmixed_channels": 8}):
        assert dataset_fingerprint(card(), [dataclasses.replace(entry, extra=same)]) == first
    other = [{"instruction": "a"}, {"instruction": "b"}, {"reference_ids": ["r"]}, {"turn": 1}]
    assert (
        len({dataset_fingerprint(card(), [dataclasses.replace(entry, extra=extra)]) for extra in other} | {first}) == 5
    )


def test_long_and_foreign_ids_keep_their_offsets(tmp_path):
    coded = coded_utterances(3)
    ids = ["x" * 150, "é" * 70, "你好"]
    coded = [
        dataclasses.replace(c, utterance=dataclasses.replace(c.utterance, id=i))
        for c, i in zip(coded, ids, strict=True)
    ]
    write_shards(tmp_path / "a", coded, card())
    assert verify_shards(tmp_path / "a")[1] == []
    dataset = ShardDataset(tmp_path / "a")
    assert [dataset.example(n).id for n in range(3)] == ids


def _count_writes(monkeypatch, fail_at=None):
    written = []
    real = shard_writer._write_shard

    def counted(folder, name, *rest):
        if name == fail_at:
            raise KeyboardInterrupt
        written.append(name)
        return real(folder, name, *rest)

    monkeypatch.setattr(shard_writer, "_write_shard", counted)
    return written


def test_a_stopped_run_goes_on_with_the_first_missing_shard(tmp_path, monkeypatch):
    _write(tmp_path / "whole")
    with monkeypatch.context() as patch:
        _count_writes(patch, fail_at="shard-000002.tar")
        with pytest.raises(KeyboardInterrupt):
            _write(tmp_path / "a")
    assert not (tmp_path / "a" / "index.json").exists()
    with pytest.raises(DataError, match="shards are missing or unfinished"):
        ShardDataset(tmp_path / "a")
    written = _count_writes(monkeypatch)
    _write(tmp_path / "a")
    assert written == ["shard-000002.tar"]
    assert sorted(os.listdir(tmp_path / "a")) == sorted(os.listdir(tmp_path / "whole"))
    for name in os.listdir(tmp_path / "whole"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_finished_folder_is_left_alone_and_a_damaged_shard_is_made_again(tmp_path, monkeypatch):
    _write(tmp_path / "a")
    content = (tmp_path / "a" / "shard-000001.tar").read_bytes()
    written = _count_writes(monkeypatch)
    _write(tmp_path / "a")
    assert written == []
    (tmp_path / "a" / "shard-000001.tar").write_bytes(content[:-512])
    _write(tmp_path / "a")
    assert written == ["shard-000001.tar"]
    assert (tmp_path / "a" / "shard-000001.tar").read_bytes() == content


def test_changed_utterances_rewrite_only_their_shards(tmp_path, monkeypatch):
    _write(tmp_path / "a", count=10)
    written = _count_writes(monkeypatch)
    _write(tmp_path / "a", count=11)
    assert written == ["shard-000002.tar"]
    written.clear()
    _write(tmp_path / "a", count=4)
    assert written == []
    assert sorted(os.listdir(tmp_path / "a")) == ["index.json", "shard-000000.tar"]
    coded = coded_utterances(4)
    coded[2] = dataclasses.replace(coded[2], utterance=dataclasses.replace(coded[2].utterance, text="New."))
    write_shards(tmp_path / "a", coded, card(), 4)
    assert written == ["shard-000000.tar"]
    assert ShardDataset(tmp_path / "a").example(2).text == "New."


def test_a_stop_while_rewriting_leaves_no_index_of_lost_shards(tmp_path, monkeypatch):
    _write(tmp_path / "a", count=10)
    with monkeypatch.context() as patch:
        _count_writes(patch, fail_at="shard-000002.tar")
        with pytest.raises(KeyboardInterrupt):
            _write(tmp_path / "a", count=12)
    assert not (tmp_path / "a" / "index.json").exists()
    written = _count_writes(monkeypatch)
    _write(tmp_path / "a", count=12)
    assert written == ["shard-000002.tar"]
    assert verify_shards(tmp_path / "a")[1] == []


def test_another_tokenizer_does_not_write_into_the_folder(tmp_path):
    _write(tmp_path / "a")
    before = (tmp_path / "a" / "index.json").read_bytes()
    with pytest.raises(DataError, match=r"a holds shards of tokenizer fake f{16} .*, these codes are of fake 0{16}"):
        write_shards(tmp_path / "a", coded_utterances(3), card("0" * 16))
    assert (tmp_path / "a" / "index.json").read_bytes() == before


def test_a_damaged_part_is_named(tmp_path):
    (tmp_path / "shard-000000.tar.part.json").write_text('{"file": "shard-000000.tar"}')
    with pytest.raises(DataError, match=r"part\.json: damaged .*; delete it and start again"):
        _write(tmp_path)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((2, 3), np.int64), r"utt000: codes are int64 \(2, 3\), expected integers of shape \(1, 3\)"),
        (np.zeros((1, 2), np.int64), r"expected integers of shape \(1, 3\) \(frames, codebooks\) for 1273 samples"),
        (np.zeros((1, 3), np.float32), r"codes are float32"),
        (np.full((1, 3), 16), r"codes range over 16\.\.16, expected 0\.\.15"),
        (np.full((1, 3), -1), r"codes range over -1\.\.-1, expected 0\.\.15"),
    ],
)
def test_wrong_codes_are_refused_and_leave_nothing(tmp_path, codes, message):
    (item,) = coded_utterances(1)
    with pytest.raises(DataError, match=message):
        write_shards(tmp_path, [dataclasses.replace(item, codes=codes)], card())
    assert os.listdir(tmp_path) == []


def test_codes_from_files_and_their_failures(tmp_path):
    (item,) = coded_utterances(1)
    np.save(tmp_path / "good.npy", item.codes.astype(np.uint16))
    write_shards(tmp_path / "a", [CodedUtterance(item.utterance, item.num_samples, tmp_path / "good.npy")], card())
    np.testing.assert_array_equal(ShardDataset(tmp_path / "a").example(0).codes, item.codes)
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY nonsense")
    with pytest.raises(DataError, match=r"bad\.npy: not a readable \.npy file .*; delete it and encode again"):
        write_shards(tmp_path / "b", [CodedUtterance(item.utterance, item.num_samples, tmp_path / "bad.npy")], card())
    with pytest.raises(DataError, match=r"none\.npy is missing; run data_prep/02_encode_codes\.py again"):
        write_shards(tmp_path / "b", [CodedUtterance(item.utterance, item.num_samples, tmp_path / "none.npy")], card())
    assert leftovers(tmp_path) == []


def test_no_utterances_duplicate_ids_and_empty_shards_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no utterances to write to .*; check the manifest"):
        write_shards(tmp_path, [], card())
    with pytest.raises(DataError, match=r"utterances_per_shard=0, expected at least 1"):
        _write(tmp_path, per_shard=0)
    with pytest.raises(
        DataError, match=r"duplicate id 'utt000': two utterances of one dataset would share a member name"
    ):
        write_shards(tmp_path, coded_utterances(2) + coded_utterances(1), card())
    item = coded_utterances(1)[0]
    dotted = dataclasses.replace(item, utterance=dataclasses.replace(item.utterance, id="a.b"))
    with pytest.raises(DataError, match=r"shards: id 'a\.b' cannot name a shard member"):
        write_shards(tmp_path, [dotted], card())
    assert os.listdir(tmp_path) == []
