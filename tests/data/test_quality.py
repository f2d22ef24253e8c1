import json
import pickle
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from moss.data.manifest import read_manifest, write_manifest
from moss.data.manifest_build import ManifestSettings, build_manifest
from moss.data.quality import _make_work, measure_utterances, read_quality, select_utterances, word_error_rate
from moss.data.quality_measures import MEASURES
from moss.data.sources import folder_source
from moss.errors import DataError
from tests.recordings import RATE_HZ, call_script, leftovers, write_folder

pytest.importorskip("jiwer", reason="word error rates need the eval extra")


@pytest.fixture
def utterances(tmp_path):
    folder = write_folder(tmp_path / "wavs", 5)
    return build_manifest(tmp_path, folder_source(folder, language="en"), ManifestSettings()).utterances


def _seconds(calls, wave):
    calls.append(wave.shape)
    return {"ovrl": wave.shape[0] / RATE_HZ}


def _refuse(wave):
    raise RuntimeError("no speech in it")


def _make(function):
    return function


def test_every_recording_is_measured_once(tmp_path, utterances):
    journal, calls = tmp_path / "quality.jsonl", []
    make = partial(_make, partial(_seconds, calls))
    first = measure_utterances(utterances[:2], journal, "dnsmos", make_measure=make)
    assert (first.measured, first.kept, first.quarantined) == (2, 0, 0)
    # The journal's last line was cut short by a kill.
    journal.write_bytes(journal.read_bytes()[:-8])
    twins = [*utterances, replace(utterances[4], id="twin")]
    second = measure_utterances(twins, journal, "dnsmos", make_measure=make)
    assert (second.measured, second.kept, len(calls)) == (4, 1, 6)
    found = read_quality(journal)
    assert found == {(u.sha256, "dnsmos"): {"ovrl": 1.0} for u in utterances}


@pytest.mark.parametrize("name", MEASURES)
def test_the_work_can_be_sent_to_processes(name):
    assert pickle.loads(pickle.dumps(partial(_make_work, MEASURES[name]))).args == (MEASURES[name],)


def test_bad_recordings_are_put_aside_and_tried_again(tmp_path, utterances):
    journal = tmp_path / "quality.jsonl"
    content = Path(utterances[1].audio).read_bytes()
    Path(utterances[1].audio).write_bytes(b"nonsense")
    make = partial(_make, partial(_seconds, []))
    result = measure_utterances(utterances, journal, "dnsmos", make_measure=make, max_bad_frac=0.5)
    assert (result.measured, result.quarantined) == (4, 1)
    (row,) = [json.loads(line) for line in (tmp_path / "quality_quarantine_dnsmos.jsonl").open()]
    assert (row["id"], row["stage"]) == ("clip01", "dnsmos")
    assert "corrupt or unknown audio" in row["reason"]
    # Another measure's list does not take its place.
    hear = partial(_make, lambda wave: {"text": "x"})
    assert measure_utterances(utterances, journal, "transcript", make_measure=hear, max_bad_frac=0.5).quarantined == 1
    (row,) = [json.loads(line) for line in (tmp_path / "quality_quarantine_dnsmos.jsonl").open()]
    assert row["stage"] == "dnsmos"
    Path(utterances[1].audio).write_bytes(content)
    assert measure_utterances(utterances, journal, "dnsmos", make_measure=make).measured == 1
    with pytest.raises(DataError, match=r"5 of 5 recordings .* first: clip00: RuntimeError: no speech in it"):
        measure_utterances(utterances, tmp_path / "other.jsonl", "dnsmos", make_measure=partial(_make, _refuse))
    with pytest.raises(DataError, match=r"measure 'mos' with 1 workers: expected dnsmos or transcript"):
        measure_utterances(utterances, journal, "mos")


def test_only_languages_that_the_recogniser_knows_are_transcribed(tmp_path, utterances):
    french = [replace(u, language="fr") for u in utterances[:3]]
    make = partial(_make, lambda wave: {"text": "hello"})
    result = measure_utterances([*french, *utterances[3:]], tmp_path / "q.jsonl", "transcript", make_measure=make)
    assert result.measured == 2


def test_word_error_rate_ignores_case_and_punctuation():
    assert word_error_rate("Hello, World!", "hello world") == 0.0
    assert word_error_rate("one two three four", "one too three") == 0.5
    assert word_error_rate("one", "") == 1.0


def _measured(utterances, scores, texts):
    found = {(utterances[n].sha256, "dnsmos"): {"ovrl": score} for n, score in enumerate(scores)}
    return found | {(utterances[n].sha256, "transcript"): {"text": text} for n, text in enumerate(texts)}


def test_rows_are_selected_and_counted_by_reason(utterances):
    right = [u.text for u in utterances]
    measured = _measured(utterances, [3.0, 2.0, 3.0, 3.0], [right[0], right[1], "something else", right[3]])
    selection = select_utterances(utterances, measured, min_dnsmos=2.5, max_wer=0.3)
    assert [u.id for u in selection.kept] == ["clip00", "clip03"]
    assert selection.kept[0].extra == {"dnsmos_ovrl": 3.0, "asr_wer": 0.0}
    assert selection.dropped == {"DNSMOS below 2.5": 1, "word error rate above 0.3": 1, "no DNSMOS measured": 1}
    assert selection.lines()[0] == "kept: 2, 0.001 h   dropped: 3"
    assert "  DNSMOS below 2.5: 1" in selection.lines()
    untranscribed = select_utterances(utterances, measured, max_wer=0.3).dropped
    assert untranscribed == {"word error rate above 0.3": 1, "no transcript measured": 1}


def test_a_language_without_recogniser_has_no_word_error_rate(utterances):
    french = [replace(u, language="fr") for u in utterances]
    measured = _measured(french, [3.0] * 5, ["nothing alike"] * 5)
    selection = select_utterances(french, measured, max_wer=0.1)
    assert len(selection.kept) == 5
    assert "asr_wer" not in selection.kept[0].extra


def test_references_stay_and_a_conversation_goes_as_a_whole(utterances):
    turns = [replace(u, extra={"conversation": "a" if n < 2 else "b"}) for n, u in enumerate(utterances)]
    turns[4] = replace(utterances[4], split="reference", text="")
    selection = select_utterances(turns, _measured(turns, [3.0, 1.0, 3.0, 3.0, 1.0], []), min_dnsmos=2.0)
    assert [u.id for u in selection.kept] == ["clip02", "clip03", "clip04"]
    assert selection.dropped == {"DNSMOS below 2": 1, "another turn of the conversation was dropped": 1}


def test_limits_that_leave_nothing_and_no_limits(utterances):
    measured = _measured(utterances, [3.0] * 5, [])
    with pytest.raises(DataError, match=r"none of 5 utterances is left; kept: 0, .*DNSMOS below 4: 5"):
        select_utterances(utterances, measured, min_dnsmos=4.0)
    with pytest.raises(DataError, match=r"nothing to select by: give --min-dnsmos, --max-wer or both"):
        select_utterances(utterances, measured)


def test_the_command_line_measures_and_selects(tmp_path, utterances, monkeypatch, capsys):
    from moss.data import quality, quality_measures

    fake = {"dnsmos": partial(_make, partial(_seconds, [])), "transcript": partial(_make, lambda wave: {"text": "x"})}
    for module in (quality, quality_measures):
        monkeypatch.setattr(module, "MEASURES", fake)
    rows = read_manifest(tmp_path / "utterances.jsonl")
    write_manifest(tmp_path / "utterances.jsonl", [replace(rows[0], text=""), *rows[1:]])
    assert call_script("06_quality.py", "--root", tmp_path) == 0
    assert "dnsmos: measured: 5   done before: 0   put aside (bad): 0" in capsys.readouterr().out
    assert call_script("06_quality.py", "--root", tmp_path, "--measures", "dnsmos", "--min-dnsmos", "0.5") == 0
    out = capsys.readouterr().out
    assert "dnsmos: measured: 0   done before: 5" in out
    assert "kept: 5" in out
    kept = read_manifest(tmp_path / "utterances_filtered.jsonl", needs_text=False)
    assert [u.audio for u in kept] == [u.audio for u in rows]
    assert kept[0].extra["dnsmos_ovrl"] == 1.0
    assert call_script("06_quality.py", "--root", tmp_path, "--measures", "--max-wer", "0.5") == 0
    # A clip without a text has no word error rate.
    assert "word error rate above 0.5: 4" in capsys.readouterr().out
    assert leftovers(tmp_path) == []


def test_recordings_without_a_hash_cannot_be_measured(tmp_path, utterances):
    unnamed = [replace(utterances[0], sha256=""), *utterances[1:]]
    with pytest.raises(DataError, match=r"1 of 5 utterances have no sha256, by which measures are kept; make the man"):
        measure_utterances(unnamed, tmp_path / "quality.jsonl", "dnsmos")
    assert not (tmp_path / "quality.jsonl").exists()


def test_word_errors_without_jiwer_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(DataError, match=r"jiwer is not installed; run: pip install 'moss\[eval\]'"):
        word_error_rate("a", "b")
