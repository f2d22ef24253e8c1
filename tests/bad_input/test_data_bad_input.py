"""Bad input to data preparation, one test per item: exit code, message, and what remains on disk."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import soundfile

from moss.data.shard import ShardDataset
from moss.data.shard_writer import write_shards
from tests.debian import build_corpus
from tests.recordings import (
    FAKE_TOKENIZER,
    RATE_HZ,
    build_fake,
    call_script,
    card,
    coded_utterances,
    interrupt_script,
    leftovers,
    run_script,
    write_folder,
    write_tone,
)

INTERRUPTED = "interrupted: finished work is kept; start the same command again to go on\n"


def _manifest(root, *more):
    """01 over `root/wavs`; returns its exit code."""
    return call_script("01_manifest.py", "--root", root, "--source", "folder", "--input", root / "wavs",
                       "--language", "en", *more)  # fmt: skip


def _ids(path):
    return [json.loads(line)["id"] for line in path.open()]


def _refused_then_quarantined(root, capsys, bad_id, reason):
    """One bad of four recordings: refused by default, put aside with its reason where a quarter may be bad."""
    assert _manifest(root) == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        f"error: 1 of 4 recordings (25.0%) cannot be used, more than --max-bad-frac 0.05; first: {bad_id}: "
    )
    assert reason in error
    assert not (root / "utterances.jsonl").exists()
    assert _ids(root / "quarantine.jsonl") == [bad_id]
    assert _manifest(root, "--max-bad-frac", "0.25") == 0
    (row,) = [json.loads(line) for line in (root / "quarantine.jsonl").open()]
    assert row["id"] == bad_id
    assert reason in row["reason"]
    assert _ids(root / "utterances.jsonl") == ["clip00", "clip01", "clip02"]
    assert leftovers(root) == []


@pytest.fixture
def root(tmp_path):
    """A data root with three good recordings in `wavs`."""
    write_folder(tmp_path / "root" / "wavs", 3)
    return tmp_path / "root"


def _text(root, name):
    (root / "wavs" / f"{name}.txt").write_text("Some words.")


def test_corrupt_audio(root, capsys):
    (root / "wavs" / "zbad.wav").write_bytes(b"RIFF but nothing else")
    _text(root, "zbad")
    _refused_then_quarantined(root, capsys, "zbad", "corrupt or unknown audio")


def test_empty_audio(root, capsys):
    (root / "wavs" / "zbad.wav").touch()
    _text(root, "zbad")
    _refused_then_quarantined(root, capsys, "zbad", "empty file (0 bytes)")


def test_silent_audio(root, capsys):
    write_tone(root / "wavs" / "zbad.wav", peak=1e-4)
    _text(root, "zbad")
    _refused_then_quarantined(root, capsys, "zbad", "silent: peak 1.2e-04 is below 0.001")


def test_8_channel_audio(root, capsys):
    write_tone(root / "wavs" / "zbad.wav", channels=8)
    _text(root, "zbad")
    _refused_then_quarantined(root, capsys, "zbad", "8 channels: which of them hold the speech is not known")
    assert _manifest(root, "--downmix") == 0
    assert _ids(root / "utterances.jsonl")[-1] == "zbad"


def test_audio_at_a_rate_that_speech_does_not_have(root, capsys):
    write_tone(root / "wavs" / "zbad.wav", rate_hz=4_000)
    _text(root, "zbad")
    _refused_then_quarantined(root, capsys, "zbad", "sampling rate 4000 Hz: expected 8000 to 192000 Hz; convert")


def test_audio_with_nan_in_its_last_sample(root, capsys):
    wave = np.zeros(12 * RATE_HZ, dtype=np.float32)
    wave[100], wave[-1] = 0.5, np.nan
    soundfile.write(root / "wavs" / "zbad.wav", wave, RATE_HZ, "FLOAT")
    _text(root, "zbad")
    _refused_then_quarantined(root, capsys, "zbad", "non-finite samples (NaN or infinity)")


@pytest.mark.parametrize("rate_hz", [8_000, 192_000])
def test_10_ms_of_audio_are_encoded(root, monkeypatch, rate_hz):
    write_tone(root / "wavs" / "zshort.wav", 0.01, rate_hz=rate_hz)
    _text(root, "zshort")
    assert _manifest(root) == 0
    assert _encode(root, monkeypatch) == 0
    assert call_script("03_write_shards.py", "--root", root) == 0
    assert call_script("04_verify_shards.py", "--shards", root / "shards") == 0
    assert ShardDataset(root / "shards").example(3).codes.shape == (1, 3)


def test_clipped_audio_is_kept_and_counted(root, capsys):
    write_tone(root / "wavs" / "zloud.wav", peak=4.0)
    _text(root, "zloud")
    assert _manifest(root) == 0
    assert "clipped, kept (more than 0.1% of the samples at full scale): 1" in capsys.readouterr().out
    row = json.loads((root / "utterances.jsonl").read_text().splitlines()[-1])
    assert row["extra"]["clipped_frac"] > 0.5


def test_empty_text(root, capsys):
    write_tone(root / "wavs" / "zbad.wav")
    (root / "wavs" / "zbad.txt").write_text(" \n")
    _refused_then_quarantined(root, capsys, "zbad", "empty text: no letter or digit in ''")


def test_duplicate_ids(root, capsys):
    write_tone(root / "wavs" / "clip01.w64")
    _refused_then_quarantined(root, capsys, "clip01", "duplicate id 'clip01': the first one is kept")


def test_text_in_another_encoding(root, capsys):
    write_tone(root / "wavs" / "zbad.wav")
    (root / "wavs" / "zbad.txt").write_bytes("Un café.".encode("latin-1"))
    _refused_then_quarantined(
        root, capsys, "zbad", "text zbad.txt: not UTF-8: byte 0xe9 at position 6; convert the text"
    )


def _listed(root, **reference):
    """An OpenMOSS JSONL of the three recordings, the first with fields of its own; returns 01's exit code."""
    rows = [{"audio": f"wavs/clip{n:02d}.wav", "text": f"Sentence {n}.", "language": "en"} for n in range(3)]
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [rows[0] | reference, *rows[1:]]))
    return call_script("01_manifest.py", "--root", root, "--source", "openmoss-jsonl", "--input", root / "train.jsonl")


def test_corrupt_reference(root, capsys):
    (root / "voice.wav").write_bytes(b"RIFF but nothing else")
    assert _listed(root, ref_audio="voice.wav") == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: 1 of 3 recordings (33.3%) cannot be used")
    assert f"first: train-000001: reference {root / 'voice.wav'}: corrupt or unknown audio" in error
    assert not (root / "utterances.jsonl").exists()
    assert leftovers(root) == []


def test_reference_that_is_not_in_the_shards(root, capsys, monkeypatch):
    write_tone(root / "voice.wav")
    assert _listed(root, reference=[None, "voice.wav"]) == 0
    assert _encode(root, monkeypatch) == 0
    assert call_script("03_write_shards.py", "--root", root) == 0
    assert call_script("04_verify_shards.py", "--shards", root / "shards") == 0
    nothing, voice = ShardDataset(root / "shards").example(0).references
    assert nothing is None
    assert voice.shape == (13, 3)
    manifest = root / "utterances.jsonl"
    lines = manifest.read_text().splitlines()
    assert "ref-" in json.loads(lines[-1])["id"]
    manifest.write_text("\n".join(lines[:-1]) + "\n")
    capsys.readouterr()
    assert call_script("03_write_shards.py", "--root", root) == 3
    error = capsys.readouterr().err
    assert error.startswith("error: utterance train-000001 refers to 'ref-")
    assert error.endswith("which is not in the manifest; make it again with data_prep/01_manifest.py\n")
    assert call_script("04_verify_shards.py", "--shards", root / "shards") == 0


def test_shards_of_two_tokenizers_in_one_mixture(tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    write_shards(first, coded_utterances(3), card())
    write_shards(second, coded_utterances(3, "more"), card("0" * 16))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert call_script("04_verify_shards.py", "--shards", first, second) == 3
    assert capsys.readouterr().err == (
        f"error: shards of two tokenizers in one mixture: {first} is fake {'f' * 16} (3 codebooks), {second} is fake "
        f"{'0' * 16} (3 codebooks); encode both with the same tokenizer\n"
    )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_truncated_tar(tmp_path, capsys):
    folder = tmp_path / "shards"
    write_shards(folder, coded_utterances(9), card(), utterances_per_shard=3)
    whole = (folder / "shard-000001.tar").read_bytes()
    (folder / "shard-000001.tar").write_bytes(whole[: len(whole) // 2])
    assert call_script("04_verify_shards.py", "--shards", folder) == 3
    error = capsys.readouterr().err
    assert error.startswith(
        f"error: 1 problem in {folder}; restore the named shards, or delete them and run data_prep/03"
    )
    assert f"shard-000001.tar: truncated: {len(whole) // 2} bytes, the index says {len(whole)}\n" in error
    kept = (folder / "shard-000000.tar").stat().st_mtime_ns
    write_shards(folder, coded_utterances(9), card(), utterances_per_shard=3)
    assert (folder / "shard-000001.tar").read_bytes() == whole
    assert (folder / "shard-000000.tar").stat().st_mtime_ns == kept
    assert call_script("04_verify_shards.py", "--shards", folder) == 0


def _small_files(limit_bytes):
    """Lines that make every write beyond `limit_bytes` fail, as on a full disk."""
    return (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, {limit_bytes}))\n"
    )


def test_no_disk_space_while_writing_the_manifest(root):
    for number in range(12):
        _text(root, f"long{number:02d}")
        write_tone(root / "wavs" / f"long{number:02d}.wav")
    arguments = ["--root", root, "--source", "folder", "--input", root / "wavs", "--language", "en"]
    # The memory of inspections and the manifest are the first files to grow beyond this.
    run = run_script("01_manifest.py", *arguments, setup=_small_files(2000))
    assert run.returncode == 3
    assert run.stderr.startswith("error: no space left on ")
    assert "finished work is kept" in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert not (root / "utterances.jsonl").exists()
    assert leftovers(root) == []
    inspected = (root / "inspected.jsonl").read_text().splitlines()
    assert len(inspected) > 3
    assert all(json.loads(line) for line in inspected)
    assert _manifest(root) == 0
    assert (root / "inspected.jsonl").read_text().splitlines()[: len(inspected)] == inspected


_ENCODE = ("--workers", "1", "--batch-size", "1")


def _encode(root, monkeypatch):
    """02 with the fake tokenizer in this process; returns its exit code."""
    monkeypatch.setattr("moss.tokenizer.build.build_tokenizer", build_fake)
    return call_script("02_encode_codes.py", "--root", root, *_ENCODE)


def test_no_disk_space_while_encoding(root, capsys, monkeypatch):
    write_tone(root / "wavs" / "zlong.wav", seconds=40)
    _text(root, "zlong")
    assert _manifest(root) == 0
    run = run_script("02_encode_codes.py", "--root", root, *_ENCODE, setup=FAKE_TOKENIZER + "\n" + _small_files(2000))
    assert run.returncode == 3
    assert run.stderr.startswith("error: no space left on ")
    assert ".npy" in run.stderr
    (codes,) = (root / "codes").iterdir()
    assert len(list(codes.rglob("*.npy"))) == 3
    assert leftovers(root) == []
    assert _encode(root, monkeypatch) == 0
    assert "encoded: 1   done before: 3" in capsys.readouterr().out


def _prepared(root, monkeypatch):
    """Manifest and codes; the later recordings are longer."""
    for number in range(3):
        write_tone(root / "wavs" / f"long{number}.wav", seconds=60)
        _text(root, f"long{number}")
    assert _manifest(root) == 0
    assert _encode(root, monkeypatch) == 0


def test_no_disk_space_while_writing_shards(root, monkeypatch):
    _prepared(root, monkeypatch)
    arguments = ["--root", root, "--utterances-per-shard", "3"]
    run = run_script("03_write_shards.py", *arguments, setup=_small_files(12_000))
    assert run.returncode == 3
    assert run.stderr.startswith("error: no space left on ")
    assert "shard-000001.tar" in run.stderr
    assert sorted(os.listdir(root / "shards")) == ["shard-000000.tar", "shard-000000.tar.part.json"]
    kept = (root / "shards" / "shard-000000.tar").stat().st_mtime_ns
    assert call_script("03_write_shards.py", *arguments) == 0
    assert (root / "shards" / "shard-000000.tar").stat().st_mtime_ns == kept
    assert len(ShardDataset(root / "shards")) == 6


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="builds Debian packages: needs dpkg-deb")
def test_control_c_while_fetching_speech(tmp_path):
    root = tmp_path / "data"
    arguments = ["--root", root, "--languages", "en", "--deb-dir", build_corpus(tmp_path / "debs", ["en"])]
    code, errors = interrupt_script("00_fetch_speech.py", *arguments, hang_in="moss.data.fetch:_run", after_calls=1,
                                    marker=tmp_path / "hangs")  # fmt: skip
    assert (code, errors) == (130, INTERRUPTED)
    assert os.listdir(root / "unpacked") == ["asterisk-core-sounds-en-g722"]
    assert len(os.listdir(root / "deb")) == 2
    assert leftovers(root) == []
    kept = (root / "unpacked" / "asterisk-core-sounds-en-g722").stat().st_mtime_ns
    assert call_script("00_fetch_speech.py", *arguments) == 0
    assert (root / "unpacked" / "asterisk-core-sounds-en-g722").stat().st_mtime_ns == kept


def test_control_c_while_making_the_manifest(root, tmp_path):
    arguments = ["--root", root, "--source", "folder", "--input", root / "wavs", "--language", "en"]
    code, errors = interrupt_script("01_manifest.py", *arguments, hang_in="moss.data.inspection:inspect_recording",
                                    after_calls=2, marker=tmp_path / "hangs")  # fmt: skip
    assert (code, errors) == (130, INTERRUPTED)
    inspected = (root / "inspected.jsonl").read_text()
    assert len(inspected.splitlines()) == 2
    assert sorted(os.listdir(root)) == ["inspected.jsonl", "wavs"]
    assert call_script("01_manifest.py", *arguments) == 0
    assert (root / "inspected.jsonl").read_text().startswith(inspected)
    assert len(_ids(root / "utterances.jsonl")) == 3


@pytest.mark.parametrize(
    ("workers", "hang_in"), [("1", "moss.data.encode:_encode_batch"), ("2", "moss.data.code_store:CodeStore.put")]
)
def test_control_c_while_encoding(root, tmp_path, capsys, monkeypatch, workers, hang_in):
    assert _manifest(root) == 0
    arguments = ["--root", root, "--workers", workers, "--batch-size", "1"]
    code, errors = interrupt_script("02_encode_codes.py", *arguments, hang_in=hang_in, after_calls=2,
                                    marker=tmp_path / "hangs", setup=FAKE_TOKENIZER)  # fmt: skip
    assert (code, errors) == (130, INTERRUPTED)
    (codes,) = (root / "codes").iterdir()
    done = sorted(codes.rglob("*.npy"))
    assert len(done) == 2
    assert leftovers(root) == []
    kept = [np.load(path) for path in done]
    assert _encode(root, monkeypatch) == 0
    assert "encoded: 1   done before: 2" in capsys.readouterr().out
    for path, array in zip(done, kept, strict=True):
        np.testing.assert_array_equal(np.load(path), array)


def test_kill_while_encoding_ends_the_workers_too(root, tmp_path, capsys, monkeypatch):
    assert _manifest(root) == 0
    code, errors = interrupt_script(
        "02_encode_codes.py",
        *("--root", root, "--workers", "2", "--batch-size", "1"),
        hang_in="moss.data.code_store:CodeStore.put",
        after_calls=2,
        marker=tmp_path / "hangs",
        setup=FAKE_TOKENIZER,
        sent=signal.SIGKILL,
    )
    assert code == -signal.SIGKILL
    assert "Traceback" not in errors
    assert len(list((root / "codes").rglob("*.npy"))) == 2
    assert _encode(root, monkeypatch) == 0
    assert "encoded: 1   done before: 2" in capsys.readouterr().out


def test_control_c_while_writing_shards(root, tmp_path, monkeypatch):
    _prepared(root, monkeypatch)
    arguments = ["--root", root, "--utterances-per-shard", "2"]
    code, errors = interrupt_script("03_write_shards.py", *arguments, hang_in="moss.data.shard_writer:_write_shard",
                                    after_calls=2, marker=tmp_path / "hangs")  # fmt: skip
    assert (code, errors) == (130, INTERRUPTED)
    names = ["shard-000000.tar", "shard-000000.tar.part.json", "shard-000001.tar", "shard-000001.tar.part.json"]
    assert sorted(os.listdir(root / "shards")) == names
    kept = (root / "shards" / "shard-000001.tar").stat().st_mtime_ns
    assert call_script("03_write_shards.py", *arguments) == 0
    assert (root / "shards" / "shard-000001.tar").stat().st_mtime_ns == kept
    assert len(ShardDataset(root / "shards")) == 6


def test_control_c_while_verifying_shards(tmp_path):
    folder = tmp_path / "shards"
    write_shards(folder, coded_utterances(6), card(), utterances_per_shard=3)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    code, errors = interrupt_script("04_verify_shards.py", "--shards", folder, hang_in="moss.data.verify:sha256_file",
                                    after_calls=1, marker=tmp_path / "hangs")  # fmt: skip
    assert (code, errors) == (130, INTERRUPTED)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert call_script("04_verify_shards.py", "--shards", folder) == 0
