"""Bad input to measuring the quality of recordings and to the settings of encoding, one test per item."""

import pytest

from tests.recordings import build_fake, call_script, interrupt_script, leftovers, run_script, write_folder

_FAKE_MEASURES = """
import moss.data.quality as q, moss.data.quality_measures as m
q.MEASURES = m.MEASURES = {name: lambda: len for name in ("dnsmos", "transcript")}
q._measure_batch = lambda measure, batch: [(job, {"ovrl": 3.0, "text": ""}, "") for job in batch]
q._BATCH_SIZE = 1
"""
"""Driver lines: 06_quality.py then measures nothing and costs nothing."""


@pytest.fixture
def root(tmp_path):
    """A data root with a manifest of three good recordings."""
    root = tmp_path / "root"
    folder = write_folder(root / "wavs", 3)
    made = call_script("01_manifest.py", "--root", root, "--source", "folder", "--input", folder, "--language", "en")
    assert made == 0
    return root


def test_control_c_while_measuring_quality(root, tmp_path):
    arguments = ["--root", root, "--measures", "dnsmos"]
    code, errors = interrupt_script("06_quality.py", *arguments, hang_in="moss.data.quality:append_jsonl",
                                    after_calls=2, marker=tmp_path / "hangs", setup=_FAKE_MEASURES)  # fmt: skip
    assert (code, errors) == (130, "interrupted: finished work is kept; start the same command again to go on\n")
    assert len((root / "quality.jsonl").read_text().splitlines()) == 2
    again = run_script("06_quality.py", *arguments, setup=_FAKE_MEASURES)
    assert "dnsmos: measured: 1   done before: 2" in again.stdout
    assert leftovers(root) == []


def test_no_disk_space_while_measuring_quality(root):
    limit = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
    )
    run = run_script("06_quality.py", "--root", root, "--measures", "dnsmos", setup=_FAKE_MEASURES + limit)
    assert run.returncode == 3
    assert run.stderr.startswith("error: no space left on ")
    assert len((root / "quality.jsonl").read_text().splitlines()) == 2
    assert not (root / "utterances_filtered.jsonl").exists()


def test_quality_of_a_folder_without_a_manifest(tmp_path, capsys):
    assert call_script("06_quality.py", "--root", tmp_path) == 3
    assert "utterances.jsonl does not exist; make it with data_prep/01_manifest.py" in capsys.readouterr().err


def test_a_batch_policy_for_a_tokenizer_without_one(root, capsys, monkeypatch):
    monkeypatch.setattr("moss.tokenizer.build.build_tokenizer", build_fake)
    assert call_script("02_encode_codes.py", "--root", root, "--batch-policy", "bucketed") == 3
    assert capsys.readouterr().err == "error: --batch-policy: a mel_rvq tokenizer has none; leave the option out\n"
    assert not (root / "codes").exists()


def test_of_a_cat_tokenizer_the_encoder_alone_is_built(root, monkeypatch):
    built = []
    monkeypatch.setattr(
        "moss.tokenizer.build.build_tokenizer", lambda *made: built.append(made[0]) or build_fake(*made)
    )
    arguments = ["--tokenizer", "cat_xs", "--batch-policy", "bucketed", "--workers", "1"]
    assert call_script("02_encode_codes.py", "--root", root, *arguments) == 0
    assert {(config.kind, config.part, config.batch_policy) for config in built} == {("cat", "encoder", "bucketed")}
