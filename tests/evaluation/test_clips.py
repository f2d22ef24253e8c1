import dataclasses
import logging
import shutil

import pytest

from moss.config.evaluation import BenchmarkName, DatasetKind, EvalConfig
from moss.data.fetch import from_folder
from moss.data.manifest import read_manifest, write_manifest
from moss.errors import DataError, EvaluationError
from moss.evaluation.clips import choose_clips, draw
from tests.debian import build_corpus
from tests.evaluation.fakes import write_voice
from tests.evaluation.systems import write_clips


def config(folder, **changes):
    values = {"output": folder / "out", "benchmark": BenchmarkName.TOKENIZER, "manifest": folder / "utterances.jsonl"}
    return EvalConfig(**(values | changes))


def ids(choice):
    return [utterance.id for utterance in choice.utterances]


def refuse_download(package, folder):
    raise DataError(f"nothing may be fetched here: {package}")


def test_a_manifest_is_taken_whole(tmp_path):
    write_clips(tmp_path, 5)
    choice = choose_clips(config(tmp_path))
    assert ids(choice) == ["u0", "u1", "u2", "u3", "u4"]
    assert choice.description == f"5 clips (6 s) of {tmp_path / 'utterances.jsonl'} (heldout)"


def test_clips_without_a_text_are_scored_too(tmp_path):
    path = write_clips(tmp_path, 3)
    write_manifest(path, [dataclasses.replace(row, text="") for row in read_manifest(path)])
    assert ids(choose_clips(config(tmp_path))) == ["u0", "u1", "u2"]


def test_split(tmp_path):
    path = write_clips(tmp_path, 4)
    rows = read_manifest(path)
    write_manifest(path, [*rows[:3], dataclasses.replace(rows[3], split="train")])
    assert ids(choose_clips(config(tmp_path))) == ["u0", "u1", "u2"]
    assert ids(choose_clips(config(tmp_path, split="train"))) == ["u3"]
    assert len(ids(choose_clips(config(tmp_path, split="")))) == 4
    with pytest.raises(EvaluationError, match=r"none of 4 utterances has split 'reference', found heldout, train"):
        choose_clips(config(tmp_path, split="reference"))


def test_language_and_shortest_duration(tmp_path):
    path = write_clips(tmp_path, 4)
    changes = [{}, {"language": "fr"}, {"duration_s": 0.9}, {"duration_s": 0.0}]
    write_manifest(
        path, [dataclasses.replace(row, **new) for row, new in zip(read_manifest(path), changes, strict=True)]
    )
    assert ids(choose_clips(config(tmp_path, language="en"))) == ["u0", "u2", "u3"]
    # What no manifest tells is looked up in the recording.
    assert ids(choose_clips(config(tmp_path, min_duration_s=1.0))) == ["u0", "u1", "u3"]
    with pytest.raises(EvaluationError, match=r"nothing is left of 4 clips with language de \(found en, fr\)"):
        choose_clips(config(tmp_path, language="de"))
    with pytest.raises(EvaluationError, match=r"at least 2 s; change language=\.\.\. or min_duration_s="):
        choose_clips(config(tmp_path, min_duration_s=2.0))


def test_clip_that_cannot_be_read_is_never_too_short(tmp_path):
    path = write_clips(tmp_path, 2, duration_s=0.0)
    (tmp_path / "clips/0.wav").write_bytes(b"RIFFnothing")
    assert ids(choose_clips(config(tmp_path, manifest=path, min_duration_s=1.0))) == ["u0", "u1"]


def test_draw_is_repeatable_and_keeps_the_order(tmp_path):
    utterances = read_manifest(write_clips(tmp_path, 5))
    assert draw(utterances, None, 0) == draw(utterances, 9, 0) == utterances
    drawn = draw(utterances, 2, 0)
    assert len(drawn) == 2
    assert drawn == sorted(draw(utterances, 2, 0), key=lambda utterance: utterance.id)
    assert {tuple(u.id for u in draw(utterances, 2, seed)) for seed in range(8)} != {tuple(u.id for u in drawn)}
    choice = choose_clips(config(tmp_path, max_utterances=2))
    assert "drawn from 5 with seed 0" in choice.description


def test_folder_as_dataset(tmp_path):
    for i, text in enumerate(("Hello there.", "")):
        write_voice(tmp_path / f"set/{i}.wav", i)
        if text:
            (tmp_path / f"set/{i}.txt").write_text(text)
    dataset = {"manifest": None, "dataset": DatasetKind.FOLDER, "data_dir": tmp_path / "set"}
    choice = choose_clips(config(tmp_path, language="en", **dataset))
    assert [utterance.text for utterance in choice.utterances] == ["Hello there.", ""]
    assert {utterance.language for utterance in choice.utterances} == {"en"}
    assert any("1 of 2 recordings have no WER" in note for note in choice.notes)
    with pytest.raises(DataError, match="is not a folder"):
        choose_clips(config(tmp_path, **(dataset | {"data_dir": tmp_path / "absent"})))


def test_embedded_corpus_is_what_is_scored_by_default(tmp_path):
    path = write_clips(tmp_path, 4, source="asterisk")
    changes = [{"duration_s": 2.0}, {"duration_s": 1.4}, {"language": "fr", "duration_s": 2.0}, {"source": "librivox"}]
    write_manifest(
        path, [dataclasses.replace(row, **new) for row, new in zip(read_manifest(path), changes, strict=True)]
    )
    choice = choose_clips(config(tmp_path, manifest=None), root=tmp_path, download=refuse_download)
    assert ids(choice) == ["u0"]
    assert "embedded corpus" in choice.description
    assert "language en, at least 1.5 s long" in choice.description
    choice = choose_clips(config(tmp_path, manifest=None, language="fr"), root=tmp_path, download=refuse_download)
    assert ids(choice) == ["u2"]


def test_a_manifest_of_other_speech_where_the_embedded_corpus_is_looked_for(tmp_path):
    path = write_clips(tmp_path, 2, source="librivox")
    with pytest.raises(EvaluationError, match="holds nothing of the embedded corpus.*set manifest=") as caught:
        choose_clips(config(tmp_path, manifest=None), root=tmp_path, download=refuse_download)
    assert str(path) in str(caught.value)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="builds Debian packages: needs dpkg-deb")
def test_embedded_corpus_is_fetched_and_listed_on_first_use(tmp_path, caplog):
    debs, root = build_corpus(tmp_path / "debs", ["en", "it"]), tmp_path / "speech"
    settings = config(tmp_path, manifest=None, split="", min_duration_s=0.1)
    with caplog.at_level(logging.INFO, logger="moss.evaluation.clips"):
        choice = choose_clips(settings, root=root, download=from_folder(debs))
    assert "fetching the embedded corpus, language en (about 11 MB)" in caplog.text
    assert ids(choice) == ["en__hello", "en__long"]
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="moss.evaluation.clips"):
        again = choose_clips(settings, root=root, download=refuse_download)
    assert (again, caplog.text) == (choice, "")


def test_embedded_corpus_that_cannot_be_fetched(tmp_path):
    with pytest.raises(DataError, match="nothing may be fetched here: asterisk-core-sounds-en-g722"):
        choose_clips(config(tmp_path, manifest=None), root=tmp_path / "speech", download=refuse_download)
