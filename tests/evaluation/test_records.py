import json

import pyarrow.parquet as pq

from moss.config.evaluation import Metric
from moss.evaluation.metrics.wer import word_errors
from moss.evaluation.records import Journal, Record, record_key, word_error_fields


def record(**changes):
    values = {
        "system": "generated",
        "group": "seen",
        "utterance": "u1",
        "metric": Metric.WER,
        "value": 0.25,
        "error": None,
        "backend": "asr",
        "protocol": "p",
        "key": "k1",
        "extra": word_error_fields(
            "One two, three four.", "one two three for", word_errors("One two, three four.", "one two three for", "en")
        ),
    }
    return Record(**(values | changes))


def test_key_depends_on_every_input():
    inputs = {"wav": "a", "text": "b", "target_s": 1.0, "prompt": None}
    keys = {record_key(inputs)} | {record_key(inputs | {name: "other"}) for name in inputs}
    assert len(keys) == 5
    assert record_key(dict(reversed(inputs.items()))) == record_key(inputs)


def test_journal_finds_what_it_kept_and_only_that(tmp_path):
    Journal(tmp_path).append(record())
    journal = Journal(tmp_path)
    assert journal.find(("generated", "u1", Metric.WER), "k1") == record()
    for identity, key in [
        (("generated", "u1", Metric.WER), "k2"),
        (("generated", "u2", Metric.WER), "k1"),
        (("ground truth", "u1", Metric.WER), "k1"),
        (("generated", "u1", Metric.SIM), "k1"),
    ]:
        assert journal.find(identity, key) is None


def test_failures_are_tried_again(tmp_path):
    Journal(tmp_path).append(record(value=None, error="broken"))
    assert Journal(tmp_path).find(("generated", "u1", Metric.WER), "k1") is None


def test_line_cut_short_and_lines_of_other_versions_are_scored_again(tmp_path):
    journal = Journal(tmp_path)
    journal.append(record())
    with journal.jsonl.open("a") as file:
        file.write(json.dumps(record().as_dict() | {"utterance": "old", "new_field": 1}) + "\n")
        file.write(json.dumps(record().as_dict() | {"metric": "mos"}) + "\n")
        file.write(json.dumps(record(utterance="u2").as_dict())[:40])
    again = Journal(tmp_path)
    again.append(record(utterance="u3"))
    third = Journal(tmp_path)
    found = [third.find(("generated", name, Metric.WER), "k1") is not None for name in ("u1", "old", "u2", "u3")]
    assert found == [True, False, False, True]


def test_finish_writes_both_files_in_order(tmp_path):
    journal = Journal(tmp_path)
    records = [
        record(utterance="b"),
        record(utterance="a", metric=Metric.SIM, value=0.5, extra={"prompt_kind": "target"}),
        record(utterance="c", value=None, error="gone", extra={"text": "x", "num_tokens": 1}),
        record(utterance="d", value=None, error="invalid_ref: empty", extra={}),
    ]
    for kept in reversed(records):
        journal.append(kept)
    journal.finish(records)
    assert [json.loads(line)["utterance"] for line in journal.jsonl.read_text().splitlines()] == ["b", "a", "c", "d"]
    table = pq.read_table(journal.parquet).to_pylist()
    assert [row["status"] for row in table] == ["ok", "ok", "failed", "invalid_ref"]
    assert [row["value"] for row in table] == [0.25, 0.5, None, None]
    assert (table[0]["hits"], table[0]["substitutions"], table[1]["hits"]) == (3, 1, None)
    assert table[0]["text_norm"] == "one two three four"
    assert json.loads(table[1]["extra"]) == {"prompt_kind": "target"}
