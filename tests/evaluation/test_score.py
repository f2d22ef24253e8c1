import pytest

from moss.config.evaluation import Metric
from moss.errors import EvaluationError
from moss.evaluation.items import Item
from moss.evaluation.records import Journal
from moss.evaluation.score import score_items
from tests.evaluation.fakes import fake_backends, write_voice

ALL = tuple(Metric)


def item(folder, name="u1", **changes):
    clip = write_voice(folder / f"{name}.wav", 1)
    target = write_voice(folder / f"{name}-target.wav", 1, pitch_hz=125)
    values = {
        "system": "generated",
        "group": "",
        "utterance": name,
        "text": "Hello there.",
        "language": "en",
        "metrics": ALL,
        "wav": clip,
        "prompt": target,
        "prompt_kind": "reference",
        "target": target,
        "target_s": 1.0,
        "processing_s": 0.3,
        "timed_on": "a pocket calculator",
    }
    return Item(**(values | changes))


def test_every_metric_gives_one_record(tmp_path):
    records = score_items([item(tmp_path)], fake_backends(), Journal(tmp_path))
    assert [record.metric for record in records] == list(ALL)
    assert all(record.error is None for record in records)
    by_metric = {record.metric: record for record in records}
    assert by_metric[Metric.WER].value == 1.0
    assert by_metric[Metric.WER].extra["hypothesis"] == "something else"
    assert by_metric[Metric.DURATION_ERROR].value == pytest.approx(0.2)
    assert by_metric[Metric.SIM].extra == {"prompt_kind": "reference"}
    assert by_metric[Metric.RTF].value == pytest.approx(0.25)
    assert by_metric[Metric.RTF].extra == {
        "processing_s": 0.3,
        "audio_s": 1.2,
        "timed_on": "a pocket calculator",
    }
    assert by_metric[Metric.MEL_DISTANCE].backend.startswith("librosa ")
    assert {record.protocol for record in records} == {"embedded-v1"}
    assert by_metric[Metric.STOI].backend.startswith("pystoi ")
    assert by_metric[Metric.WER].backend.startswith("fake-asr 1")


def test_second_run_takes_over_what_is_unchanged(tmp_path):
    first = score_items([item(tmp_path)], fake_backends(), Journal(tmp_path))
    backends = fake_backends()
    assert score_items([item(tmp_path)], backends, Journal(tmp_path)) == first
    assert (backends.recogniser.calls, backends.speaker.calls) == (0, 0)


@pytest.mark.parametrize("change", ["clip", "text", "recogniser"])
def test_changed_input_is_scored_again(tmp_path, change):
    wanted = item(tmp_path, metrics=(Metric.WER,))
    score_items([wanted], fake_backends(), Journal(tmp_path))
    backends = fake_backends(version="2" if change == "recogniser" else "1")
    if change == "clip":
        write_voice(wanted.wav, 2)
    if change == "text":
        wanted = item(tmp_path, metrics=(Metric.WER,), text="Other words.")
    score_items([wanted], backends, Journal(tmp_path))
    assert backends.recogniser.calls == 1


def test_other_rules_and_another_time_are_scored_again(tmp_path):
    wanted = item(tmp_path, metrics=(Metric.WER, Metric.RTF))
    score_items([wanted], fake_backends(), Journal(tmp_path))
    backends = fake_backends()
    records = score_items([wanted], backends, Journal(tmp_path), protocol="tokenizer-v2")
    assert ({record.protocol for record in records}, backends.recogniser.calls) == ({"tokenizer-v2"}, 1)
    slower = item(tmp_path, metrics=(Metric.RTF,), processing_s=0.6)
    assert score_items([slower], backends, Journal(tmp_path))[0].value == pytest.approx(0.5)


def test_scores_do_not_depend_on_the_number_of_workers(tmp_path):
    items = [item(tmp_path, f"u{i}", metrics=(Metric.WER, Metric.SIM, Metric.STOI)) for i in range(6)]
    runs = []
    for workers in (1, 3):
        (tmp_path / str(workers)).mkdir()
        journal = Journal(tmp_path / str(workers))
        journal.finish(score_items(items, fake_backends(workers=workers), journal))
        runs.append(journal.jsonl.read_bytes())
    assert runs[0] == runs[1]


def test_prompt_is_embedded_once(tmp_path):
    prompt = write_voice(tmp_path / "prompt.wav", 9)
    backends = fake_backends(workers=3)
    items = [item(tmp_path, f"u{i}", prompt=prompt, metrics=(Metric.SIM,)) for i in range(4)]
    score_items(items, backends, Journal(tmp_path))
    # The four clips are equal in content, so there are two different ones.
    assert backends.speaker.calls == 2


def test_missing_clip_is_a_failed_record_of_every_metric(tmp_path):
    absent = item(tmp_path, wav=tmp_path / "absent.wav")
    never_made = item(tmp_path, "u2", wav=None, failure="the model stopped")
    records = score_items([absent, never_made], fake_backends(), Journal(tmp_path))
    assert len(records) == 2 * len(ALL)
    assert all("absent.wav cannot be read: No such file" in record.error for record in records[: len(ALL)])
    assert {record.error for record in records[len(ALL) :]} == {"the model stopped"}
    assert records[0].extra == {"text": "Hello there.", "num_tokens": 2}


def test_text_without_words_is_invalid_even_when_the_clip_is_missing(tmp_path):
    records = score_items(
        [item(tmp_path, text="...", wav=None, metrics=(Metric.WER,))], fake_backends(), Journal(tmp_path)
    )
    assert records[0].is_invalid
    assert records[0].error == "invalid_ref: text '...' is empty after normalisation"


def test_language_nobody_understands_ends_the_run_before_it_begins(tmp_path):
    backends = fake_backends()
    items = [item(tmp_path), item(tmp_path, "u2", language="fr")]
    with pytest.raises(EvaluationError, match=r"fake-asr understands en only; 1 of 2 clips .* 'u2' \('fr'\).*metrics="):
        score_items(items, backends, Journal(tmp_path))
    assert backends.recogniser.calls == 0
    without_wer = [item(tmp_path, "u2", language="fr", metrics=(Metric.SIM,))]
    assert score_items(without_wer, backends, Journal(tmp_path))[0].error is None


def test_two_items_of_one_name(tmp_path):
    with pytest.raises(EvaluationError, match="'u1' of 'generated' is listed twice"):
        score_items([item(tmp_path), item(tmp_path)], fake_backends(), Journal(tmp_path))


def test_bug_in_a_backend_is_not_a_failed_clip(tmp_path):
    backends = fake_backends()
    backends.recogniser.transcribe = lambda wave, language: 1 / 0
    first, second = item(tmp_path, metrics=(Metric.SIM,)), item(tmp_path, "u2", metrics=(Metric.WER,))
    with pytest.raises(ZeroDivisionError):
        score_items([first, second], backends, Journal(tmp_path))
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 1
