import json

import pytest

from moss.config.evaluation import GENERATION_METRICS, BootstrapConfig, EvalConfig, Metric
from moss.errors import ConfigError, DataError, EvaluationError
from moss.evaluation.tasks.generation_rows import read_generations
from moss.evaluation.tasks.generations import GENERATED, GROUND_TRUTH, RECONSTRUCTION, GenerationsTask, generation_items
from tests.evaluation.fakes import generation_folder, write_rows


def items_of(folder, **options):
    return generation_items(read_generations(folder, **options), GENERATION_METRICS)


def prompts(items, system):
    return [(item.prompt_kind, item.prompt.stem if item.prompt else None) for item in items if item.system == system]


def test_every_clip_of_every_system_is_an_item(tmp_path):
    generation_folder(tmp_path, count=3)
    items = items_of(tmp_path)
    assert [(item.system, item.utterance) for item in items] == [
        (system, f"utt{i}") for system in (GROUND_TRUTH, RECONSTRUCTION, GENERATED) for i in range(3)
    ]
    assert all(item.wav.is_file() and item.target_s == 1.2 for item in items)
    assert all(item.metrics == GENERATION_METRICS for item in items)


def test_voice_is_another_clip_of_the_speaker_and_the_same_for_every_system(tmp_path):
    generation_folder(tmp_path, count=3)
    items = items_of(tmp_path)
    expected = [("other_clip", "1"), ("other_clip", "2"), ("other_clip", "0")]
    for system in (GROUND_TRUTH, RECONSTRUCTION, GENERATED):
        assert prompts(items, system) == expected


def test_voice_of_the_reference_comes_first(tmp_path):
    rows = generation_folder(tmp_path, count=2)
    rows[0]["reference"] = "targets/1.wav"
    write_rows(tmp_path, rows)
    assert prompts(items_of(tmp_path), GENERATED)[0] == ("reference", "1")


@pytest.mark.parametrize("reason", ["no speaker", "lone clip", "reference is the target"])
def test_ground_truth_is_not_compared_with_itself(tmp_path, reason):
    rows = generation_folder(tmp_path, count=1 if reason == "lone clip" else 2)
    for row in rows:
        if reason == "no speaker":
            del row["target"]["speaker"]
        if reason == "reference is the target":
            del row["target"]["speaker"]
            row["reference"] = row["target"]["wav"]
    write_rows(tmp_path, rows)
    items = items_of(tmp_path)
    assert prompts(items, GENERATED)[0] == ("target", "0")
    by_system = {item.system: item.metrics for item in items}
    assert Metric.SIM not in by_system[GROUND_TRUTH]
    assert Metric.SIM in by_system[GENERATED]


def test_rows_without_target_are_scored_for_what_can_be_known(tmp_path):
    rows = generation_folder(tmp_path, count=2)
    for row in rows:
        row["target"] = row["reconstruction"] = None
    write_rows(tmp_path, rows)
    items = items_of(tmp_path)
    assert {item.system for item in items} == {GENERATED}
    assert all(item.metrics == (Metric.WER,) for item in items)
    notes = GenerationsTask(EvalConfig(output=tmp_path, generations=tmp_path)).notes()
    assert "2 with nothing: no clip of the voice is known" in notes[0]


def test_reconstructions_are_all_expected_as_soon_as_there_is_one(tmp_path):
    rows = generation_folder(tmp_path, count=3)
    del rows[1]["reconstruction"]
    rows[2]["reconstruction"] = {"wav": None, "error": "clip too short"}
    write_rows(tmp_path, rows)
    failures = {item.utterance: item.failure for item in items_of(tmp_path) if item.system == RECONSTRUCTION}
    assert failures == {"utt0": None, "utt1": "no reconstruction was made of this clip", "utt2": "clip too short"}
    for row in rows:
        row.pop("reconstruction", None)
    write_rows(tmp_path, rows)
    assert RECONSTRUCTION not in {item.system for item in items_of(tmp_path)}


def test_reconstructions_from_a_folder(tmp_path):
    rows = generation_folder(tmp_path, count=2)
    for row in rows:
        del row["reconstruction"]
    write_rows(tmp_path, rows)
    folder = tmp_path / "made"
    found = [item.wav for item in items_of(tmp_path, reconstruction=folder) if item.system == RECONSTRUCTION]
    assert found == [folder / "utt0.wav", folder / "utt1.wav"]


def test_failed_generation_is_an_item_with_its_reason(tmp_path):
    rows = generation_folder(tmp_path, count=2)
    rows[0] |= {"wav": None, "error": "no end within 200 frames"}
    rows[1] |= {"wav": None}
    write_rows(tmp_path, rows)
    failures = [item.failure for item in items_of(tmp_path) if item.system == GENERATED]
    assert failures == ["no end within 200 frames", "the row has no wav"]


def test_length_of_a_target_that_does_not_say_it(tmp_path):
    rows = generation_folder(tmp_path, count=1)
    del rows[0]["target"]["duration_s"]
    write_rows(tmp_path, rows)
    assert items_of(tmp_path)[0].target_s == pytest.approx(1.2)


def test_paths_may_start_at_the_working_directory(tmp_path, monkeypatch):
    folder = tmp_path / "deep"
    rows = generation_folder(folder, count=1)
    rows[0]["target"]["wav"] = "deep/targets/0.wav"
    write_rows(folder, rows)
    monkeypatch.chdir(tmp_path)
    assert read_generations(folder)[0].target == folder / "targets/0.wav"


def test_rows_of_the_table(tmp_path):
    rows = generation_folder(tmp_path, count=4)
    rows[3]["group"] = "other"
    write_rows(tmp_path, rows)
    task = GenerationsTask(EvalConfig(output=tmp_path, generations=tmp_path))
    labels = [row.label for row in task.rows([], BootstrapConfig(resamples=100))]
    assert labels == [
        "ground truth",
        "tokenizer reconstruction",
        "generated (seen text)",
        "generated (held-out text)",
        "generated (other)",
    ]
    by_group = [row.label for row in task.group_rows([], BootstrapConfig(resamples=100))]
    assert by_group[:2] == ["ground truth (seen text)", "ground truth (held-out text)"]
    assert len(by_group) == 9


def test_task_needs_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="generations: benchmark=generations needs it"):
        GenerationsTask(EvalConfig(output=tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"request_id": 7}, "request_id is 7, expected a text"),
        ({"request_id": ""}, "request_id is empty"),
        ({"text": None}, "text is None, expected a text; is this a generations.jsonl"),
        ({"wav": 3}, "wav is 3"),
        ({"target": "a.wav"}, "target is 'a.wav', expected"),
        ({"reconstruction": {"wav": 3}}, "reconstruction is"),
        ({"target": {"wav": "targets/0.wav", "duration_s": 0}}, "target.duration_s is 0, expected seconds above 0"),
        ({"target": {"wav": "absent.wav"}}, "the target clip has no length: .*absent.wav"),
    ],
)
def test_row_that_cannot_be_scored_is_named_with_its_line(tmp_path, change, message):
    rows = generation_folder(tmp_path, count=2)
    write_rows(tmp_path, [rows[0], rows[1] | change])
    with pytest.raises(EvaluationError, match=rf"generations\.jsonl:2: {message}"):
        read_generations(tmp_path)


def test_file_that_is_missing_broken_or_empty(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*generations\.jsonl: No such file"):
        read_generations(tmp_path)
    (tmp_path / "generations.jsonl").write_text(json.dumps({"request_id": "a"})[:-3] + "\n")
    with pytest.raises(DataError, match=r"generations\.jsonl:1: not JSON"):
        read_generations(tmp_path)
    (tmp_path / "generations.jsonl").write_text("\n")
    with pytest.raises(EvaluationError, match="has no rows"):
        read_generations(tmp_path)
