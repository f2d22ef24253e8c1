import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from moss.data.inspection import Inspector, inspect_recording
from moss.data.manifest import read_manifest
from moss.data.manifest_build import ManifestSettings, build_manifest
from moss.data.quarantine import Quarantine
from moss.data.sources import Candidate, folder_source
from moss.data.split import split_of
from moss.errors import DataError
from tests.recordings import RATE_HZ, write_folder, write_tone


def _build(root, folder, **settings):
    return build_manifest(root, folder_source(folder, language="en"), ManifestSettings(**settings))


def _reasons(root):
    rows = [json.loads(line) for line in (root / "quarantine.jsonl").read_text().splitlines()]
    return {row["id"]: row["reason"] for row in rows}


def test_a_clean_folder_becomes_a_manifest(tmp_path):
    folder = write_folder(tmp_path / "wavs", 5, seconds=1.25)
    result = _build(tmp_path, folder)
    utterances = read_manifest(tmp_path / "utterances.jsonl")
    assert utterances == result.utterances
    assert [u.id for u in utterances] == [f"clip{n:02d}" for n in range(5)]
    assert all(u.duration_s == 1.25 and len(u.sha256) == 64 and Path(u.audio).is_file() for u in utterances)
    assert all(u.split == split_of(u.text) for u in utterances)
    assert (tmp_path / "quarantine.jsonl").read_text() == ""


def test_every_kind_of_bad_recording_has_its_reason(tmp_path):
    folder = write_folder(tmp_path / "wavs", 3)
    write_tone(folder / "quiet.wav", peak=5e-4)
    write_tone(folder / "eight.wav", channels=8)
    (folder / "corrupt.wav").write_bytes(b"RIFF....nonsense")
    (folder / "empty.wav").touch()
    soundfile.write(folder / "zero.wav", np.zeros(0), RATE_HZ)
    soundfile.write(folder / "nan.wav", np.full(RATE_HZ, np.nan), RATE_HZ, "FLOAT")
    write_tone(folder / "wordless.wav")
    write_tone(folder / "clip00.flac")
    for name in ("quiet", "eight", "corrupt", "empty", "zero", "nan"):
        (folder / f"{name}.txt").write_text("Some words.")
    (folder / "wordless.txt").write_text(" ... \n")
    result = _build(tmp_path, folder, max_bad_frac=0.9)
    reasons = _reasons(tmp_path)
    assert sorted(reasons) == ["clip00", "corrupt", "eight", "empty", "nan", "quiet", "wordless", "zero"]
    expected = {
        "clip00": "duplicate id 'clip00': the first one is kept",
        "corrupt": "corrupt or unknown audio",
        "eight": "8 channels: which of them hold the speech is not known",
        "empty": "empty file (0 bytes)",
        "nan": "non-finite samples",
        "quiet": "silent: peak 5.2e-04 is below 0.001",
        "wordless": "empty text: no letter or digit in '...'",
        "zero": "zero duration",
    }
    for name, start in expected.items():
        assert reasons[name].startswith(start)
    assert [u.id for u in result.utterances] == ["clip00", "clip01", "clip02"]
    assert result.quarantined == 8


def test_downmix_accepts_many_channels_and_says_so(tmp_path):
    folder = write_folder(tmp_path / "wavs", 1)
    write_tone(folder / "eight.wav", channels=8)
    (folder / "eight.txt").write_text("Some words.")
    write_tone(folder / "two.wav", channels=2)
    (folder / "two.txt").write_text("Other words.")
    result = _build(tmp_path, folder, downmix=True)
    assert {u.id: u.extra for u in result.utterances} == {
        "clip00": {}, "eight": {"downmixed_channels": 8}, "two": {"downmixed_channels": 2},
    }  # fmt: skip
    assert "several channels, of which a mono tokenizer hears the mean: 2" in result.lines()


def test_too_many_bad_ones_stop_after_the_quarantine_is_written(tmp_path):
    folder = write_folder(tmp_path / "wavs", 8)
    (folder / "clip03.wav").write_bytes(b"nonsense")
    message = r"1 of 8 recordings \(12\.5%\) cannot be used, more than --max-bad-frac 0\.05; first: clip03: corrupt"
    with pytest.raises(DataError, match=message):
        _build(tmp_path, folder)
    assert list(_reasons(tmp_path)) == ["clip03"]
    assert not (tmp_path / "utterances.jsonl").exists()
    assert len(_build(tmp_path, folder, max_bad_frac=0.125).utterances) == 7


def test_unwanted_recordings_are_counted_not_bad(tmp_path):
    for number, seconds in enumerate((0.5, 1.0, 3.0)):
        write_tone(tmp_path / "wavs" / f"{number}.wav", seconds)
        (tmp_path / "wavs" / f"{number}.txt").write_text("Words.")
    listed = [*folder_source(tmp_path / "wavs", language="en"),
              Candidate(id="beep", audio=None, text="(beep)", language="en", left_out="not speech")]  # fmt: skip
    settings = ManifestSettings(min_duration_s=0.8, max_duration_s=2.0, max_bad_frac=0.0)
    result = build_manifest(tmp_path, listed, settings)
    assert [u.id for u in result.utterances] == ["1"]
    assert result.left_out == {"shorter than 0.8 s": 1, "longer than 2 s": 1, "not speech": 1}
    assert result.lines()[:2] == ["put aside (bad): 0", "left out (not wanted): 3"]


def test_nothing_left_and_contradicting_limits_are_errors(tmp_path):
    folder = write_folder(tmp_path / "wavs", 2)
    with pytest.raises(DataError, match=r"none of 2 recordings is left; put aside \(bad\): 0; .*shorter than 5 s: 2"):
        _build(tmp_path, folder, min_duration_s=5.0)
    with pytest.raises(DataError, match=r"durations from 3 to 2 s leave nothing; expected 0 <= min < max"):
        _build(tmp_path, folder, min_duration_s=3, max_duration_s=2)


def test_a_bad_reference_spoils_the_utterance(tmp_path):
    audio = write_tone(tmp_path / "a.wav")
    candidate = Candidate(id="a", audio=audio, text="Words.", language="en", references=(tmp_path / "r.wav",))
    with pytest.raises(DataError, match=r"first: a: reference .*r\.wav: unreadable: No such file"):
        build_manifest(tmp_path, [candidate], ManifestSettings())
    write_tone(tmp_path / "r.wav")
    assert len(build_manifest(tmp_path, [candidate], ManifestSettings()).utterances) == 1


def test_a_request_without_a_recording_is_kept(tmp_path):
    reference = write_tone(tmp_path / "r.wav")
    candidate = Candidate(id="a", audio=None, text="Words.", language="en", references=(reference,))
    (utterance,) = build_manifest(tmp_path, [candidate], ManifestSettings(min_duration_s=1)).utterances
    assert (utterance.audio, utterance.duration_s, utterance.sha256) == ("", 0.0, "")


def test_a_second_run_decodes_nothing_and_a_changed_file_is_decoded_again(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "wavs", 4)
    first = _build(tmp_path, folder).utterances
    decoded = []
    real = inspect_recording
    monkeypatch.setattr("moss.data.inspection.inspect_recording", lambda path: decoded.append(path.name) or real(path))
    assert _build(tmp_path, folder).utterances == first
    assert decoded == []
    write_tone(folder / "clip02.wav", 2.0)
    second = _build(tmp_path, folder).utterances
    assert decoded == ["clip02.wav"]
    assert second[2].duration_s == 2.0
    assert second[2].sha256 != first[2].sha256


def test_a_kill_while_inspecting_loses_only_the_line_being_written(tmp_path):
    folder = write_folder(tmp_path / "wavs", 3)
    inspect = Inspector(tmp_path / "inspected.jsonl")
    for name in ("clip00.wav", "clip01.wav"):
        inspect(folder / name)
    memory = tmp_path / "inspected.jsonl"
    memory.write_bytes(memory.read_bytes()[:-30])
    assert len(_build(tmp_path, folder).utterances) == 3
    assert len(Inspector(memory)._known) == 3


def test_what_was_wrong_is_looked_at_again(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "wavs", 4)
    real = inspect_recording
    # What fails here, not in the file: a package that is missing, say.
    monkeypatch.setattr(
        "moss.data.inspection.inspect_recording",
        lambda path: replace(real(path), problem="needs PyAV" if path.name == "clip01.wav" else ""),
    )
    assert len(_build(tmp_path, folder, max_bad_frac=0.5).utterances) == 3
    assert _reasons(tmp_path) == {"clip01": "needs PyAV"}
    # A journal of before, in which it stands.
    with open(tmp_path / "inspected.jsonl", "a") as file:
        file.write(json.dumps(asdict(replace(real(folder / "clip01.wav"), problem="needs PyAV"))) + "\n")
    monkeypatch.undo()
    assert len(_build(tmp_path, folder).utterances) == 4
    assert _reasons(tmp_path) == {}


def test_a_bad_recording_is_looked_at_once_in_a_run(tmp_path, monkeypatch):
    seen = []
    real = inspect_recording
    monkeypatch.setattr("moss.data.inspection.inspect_recording", lambda path: seen.append(path.name) or real(path))
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    inspect = Inspector(tmp_path / "memory.jsonl")
    assert inspect(tmp_path / "bad.wav") == inspect(tmp_path / "bad.wav")
    assert seen == ["bad.wav"]


def test_samples_whose_mean_is_not_finite(tmp_path):
    largest = np.full((100, 2), np.finfo(np.float32).max, np.float32)
    soundfile.write(tmp_path / "a.wav", largest, RATE_HZ, "FLOAT")
    assert inspect_recording(tmp_path / "a.wav").problem == "non-finite samples (NaN or infinity)"


def test_inspection_of_a_vanished_file_is_not_remembered(tmp_path):
    inspect = Inspector(tmp_path / "memory.jsonl")
    assert inspect(tmp_path / "gone.wav").problem == "unreadable: No such file or directory"
    assert not (tmp_path / "memory.jsonl").exists()
    write_tone(tmp_path / "gone.wav")
    assert inspect(tmp_path / "gone.wav").problem == ""


def test_opposite_channels_cancel_to_silence(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([np.full(100, 0.5), np.full(100, -0.5)], 1), RATE_HZ)
    assert inspect_recording(tmp_path / "a.wav").problem.startswith("silent")


def test_quarantine_of_nothing_is_an_empty_file(tmp_path):
    Quarantine(tmp_path / "q.jsonl", "encode").close(0, 0.0)
    assert (tmp_path / "q.jsonl").read_bytes() == b""


def _candidate(root, name, reference=None, **extra):
    audio = write_tone(root / f"{name}.wav")
    if reference is not None:
        extra["reference"] = [str(path) if path else None for path in reference]
    paths = tuple(path for path in reference or () if path)
    return Candidate(id=name, audio=audio, text=f"Words of {name}.", language="en", references=paths, extra=extra)


def test_references_become_clips_of_their_own(tmp_path):
    first, second = write_tone(tmp_path / "r1.wav", 1.5), write_tone(tmp_path / "r2.wav", channels=2)
    listed = [_candidate(tmp_path, "a", [first]), _candidate(tmp_path, "b", [None, second, first]),
              _candidate(tmp_path, "c"), _candidate(tmp_path, "d", [])]  # fmt: skip
    result = build_manifest(tmp_path, listed, ManifestSettings(min_duration_s=0.5, max_duration_s=1.2))
    utterances = {utterance.id: utterance for utterance in read_manifest(tmp_path / "utterances.jsonl")}
    one, two = (f"ref-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}" for path in (first, second))
    assert list(utterances) == ["a", "b", "c", "d", one, two]
    assert utterances["a"].extra["reference_ids"] == [one]
    assert utterances["b"].extra["reference_ids"] == [None, two, one]
    assert "reference_ids" not in utterances["c"].extra | utterances["d"].extra
    # They are kept whatever their length, and are no examples.
    clip = utterances[one]
    assert (clip.text, clip.split, clip.duration_s, clip.audio) == ("", "reference", 1.5, str(first))
    assert clip.extra == {}
    assert utterances[two].extra == {"downmixed_channels": 2}
    assert result.references == 2
    assert "reference clips: 2" in result.lines()


def test_a_reference_of_many_channels_needs_downmix_too(tmp_path):
    eight = write_tone(tmp_path / "r.wav", channels=8)
    with pytest.raises(DataError, match=r"first: a: reference .*r\.wav: 8 channels: which of them hold the speech"):
        build_manifest(tmp_path, [_candidate(tmp_path, "a", [eight])], ManifestSettings())
    assert build_manifest(tmp_path, [_candidate(tmp_path, "a", [eight])], ManifestSettings(downmix=True)).references


def test_turns_stay_together_and_their_voice_keeps_its_level(tmp_path):
    voice = write_tone(tmp_path / "r.wav")
    listed = [
        _candidate(tmp_path, f"{talk}-{turn}", [voice], conversation=f"talk{talk}", turn=turn, role=role)
        for talk in range(12)
        for turn, role in enumerate(("user", "assistant"))
    ]
    result = build_manifest(tmp_path, [*listed, _candidate(tmp_path, "a", [voice])], ManifestSettings(heldout_frac=0.5))
    turns, (single, as_recorded, levelled) = result.utterances[:24], result.utterances[24:]
    splits = [{turns[2 * talk].split, turns[2 * talk + 1].split} for talk in range(12)]
    assert all(len(found) == 1 for found in splits)
    assert {"train"} in splits
    assert {"heldout"} in splits
    assert as_recorded.id == levelled.id + "-as-recorded"
    assert turns[0].extra["reference_ids"] == [as_recorded.id]
    assert single.extra["reference_ids"] == [levelled.id]
    assert (as_recorded.is_levelled, levelled.is_levelled) == (False, True)


def test_a_described_sound_needs_no_text(tmp_path):
    sound = Candidate(id="s", audio=write_tone(tmp_path / "s.wav"), text="", language="",
                      extra={"ambient_sound": "rain on a roof"})  # fmt: skip
    (utterance,) = build_manifest(tmp_path, [sound], ManifestSettings()).utterances
    assert utterance.split == split_of("rain on a roof")
    nothing = Candidate(id="n", audio=sound.audio, text="", language="", extra={"ambient_sound": "..."})
    with pytest.raises(DataError, match="first: n: empty text"):
        build_manifest(tmp_path, [nothing], ManifestSettings())
