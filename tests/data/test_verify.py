import json
import os
import shutil
import tarfile

import numpy as np
import pytest

from moss.data.shard import ShardDataset
from moss.data.shard_writer import write_shards
from moss.data.verify import require_sound, verify_shards
from moss.errors import DataError
from tests.recordings import card, coded_utterances


@pytest.fixture
def folder(tmp_path):
    write_shards(tmp_path / "shards", coded_utterances(6), card(), utterances_per_shard=3)
    return tmp_path / "shards"


def _problems(folder):
    return verify_shards(folder)[1]


def _edit_index(folder, edit):
    index = json.loads((folder / "index.json").read_text())
    edit(index)
    (folder / "index.json").write_text(json.dumps(index))


def _poke(folder, file, offset, content):
    with open(folder / file, "rb+") as tar:
        tar.seek(offset)
        tar.write(content)


def test_a_sound_folder_has_no_problems(folder):
    index, problems = verify_shards(folder)
    assert problems == []
    assert index.utterances == 6
    require_sound(folder, problems)


def test_every_bad_shard_is_listed_not_only_the_first(folder):
    (folder / "shard-000000.tar").unlink()
    path = folder / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-600])
    problems = _problems(folder)
    assert problems[0] == "shard-000000.tar: missing"
    assert problems[1].startswith("shard-000001.tar: truncated: ")
    with pytest.raises(
        DataError, match=r"2 problems in .*shards; restore .*or delete them and run data_prep/03"
    ) as caught:
        require_sound(folder, problems)
    assert len(str(caught.value).splitlines()) == 3


def test_one_flipped_bit_is_found_by_its_hash(folder):
    entry = ShardDataset(folder).entries[4]
    _poke(folder, "shard-000001.tar", entry.codes_offset + entry.codes_bytes - 1, b"\x00")
    _poke(folder, "shard-000001.tar", entry.codes_offset + entry.codes_bytes - 2, b"\x0f")
    assert _problems(folder) == [
        "shard-000001.tar: sha256 differs from the index: the file was changed after it was written"
    ]


def test_codes_out_of_range_and_damaged_json_name_the_utterance(folder):
    entries = ShardDataset(folder).entries
    _poke(folder, "shard-000000.tar", entries[1].codes_offset + entries[1].codes_bytes - 2, b"\xff\xff")
    _poke(folder, "shard-000000.tar", entries[2].json_offset, b"[")
    _poke(folder, "shard-000001.tar", entries[3].json_offset, b"[1]" + b" " * (entries[3].json_bytes - 3))
    problems = _problems(folder)
    assert "shard-000000.tar:utt001: code 65535 is outside 0..15" in problems
    assert any(p.startswith("shard-000000.tar:utt002: the JSON member is damaged") for p in problems)
    assert "shard-000001.tar:utt003: the JSON member is not an object" in problems


def test_offsets_frames_and_fields_are_compared(folder):
    def edit(index):
        first, second, third = index["shards"][0]["utterances"]
        first["codes_offset"] += 512
        second["text"] = "something else"
        third["speaker"] = "nobody"

    _edit_index(folder, edit)
    problems = _problems(folder)
    assert any(p.startswith("shard-000000.tar:utt000: member utt000.codes.npy is at (") for p in problems)
    assert any(p.startswith("shard-000000.tar:utt001: text is 'Sentence 1") for p in problems)
    assert "shard-000000.tar:utt002: speaker is 'speaker2', the index says 'nobody'" in problems
    assert any(p.startswith("index.json: dataset_fingerprint ") for p in problems)


def test_frames_must_be_the_ceiling_of_samples(folder):
    _edit_index(folder, lambda index: index["tokenizer"].update(samples_per_frame=1000))
    problems = _problems(folder)
    assert "shard-000000.tar:utt000: 1 frames for 1273 samples, expected ceil(samples / 1000)" in problems


def test_totals_duplicate_ids_strays_and_unlisted_members(folder):
    def edit(index):
        index["frames"] += 1
        index["utterances"] += 1
        index["shards"][1]["utterances"][0]["id"] = "utt001"

    _edit_index(folder, edit)
    shutil.copy(folder / "shard-000000.tar", folder / "shard-000009.tar")
    problems = _problems(folder)
    assert "shard-000001.tar:utt001: duplicate id, also in shard-000000.tar" in problems
    assert "shard-000009.tar: not in the index; delete it" in problems
    assert "shard-000001.tar: member utt003.json is not in the index" in problems
    assert "index.json: frames is 22, the shards hold 21" in problems
    assert "index.json: utterances is 7, the shards hold 6" in problems


def test_a_file_of_the_right_length_that_is_no_tar(folder):
    path = folder / "shard-000000.tar"
    path.write_bytes(os.urandom(path.stat().st_size))
    problems = _problems(folder)
    assert any(p.startswith("shard-000000.tar: not a whole tar: ") for p in problems)
    assert any(p.startswith("shard-000000.tar:utt000: codes are not a .npy array") for p in problems)


def test_a_long_list_is_cut_with_its_number(folder):
    with pytest.raises(DataError, match="25 problems in") as caught:
        require_sound(folder, [f"problem {n}" for n in range(25)])
    lines = str(caught.value).splitlines()
    assert len(lines) == 22
    assert lines[-1] == "  and 5 more"


def test_a_rewritten_tar_with_other_codes_is_found(folder, tmp_path):
    with tarfile.open(folder / "shard-000000.tar") as tar:
        tar.extractall(tmp_path / "x", filter="data")
    np.save(tmp_path / "x" / "utt000.codes.npy", np.zeros((5, 3), np.uint16))
    with tarfile.open(folder / "shard-000000.tar", "w") as tar:
        for path in sorted((tmp_path / "x").iterdir()):
            tar.add(path, path.name)
    assert any("sha256 differs" in problem for problem in _problems(folder))
