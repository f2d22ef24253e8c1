import shutil
import subprocess

import pytest

from moss.data import fetch as fetch_module
from moss.data.corpus import LANGUAGES, asterisk_source, licence_of, packages
from moss.data.fetch import download_with_apt, fetch, from_folder
from moss.errors import DataError
from tests.debian import COPYRIGHT, build_corpus
from tests.recordings import leftovers

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="builds Debian packages: needs dpkg-deb")


@pytest.fixture
def debs(tmp_path):
    return build_corpus(tmp_path / "debs", ["en", "it"])


@needs_dpkg
def test_fetched_corpus_becomes_candidates(tmp_path, debs):
    root = tmp_path / "data"
    folders = fetch(root, ["en", "it"], from_folder(debs))
    assert [folder.name for folder in folders] == [package.name for package in packages(["en", "it"])]
    found = list(asterisk_source(root, ["en"]))
    assert [(c.id, c.text, c.left_out) for c in found] == [
        ("en__hello", "Hello there.", ""),
        ("en__letters__at", "at [@]", "not speech"),
        ("en__beep", "<beep>", "not speech"),
        ("en__silence__1", "(1 second of silence)", "transcript without a recording"),
        ("en__missing", "This was never recorded.", "transcript without a recording"),
        ("en__long", "It says: yes.", ""),
        ("en__extra", "", "recording without a transcript"),
    ]
    assert (found[0].speaker, found[0].licence, found[0].language) == ("Allison", "CC-BY-SA-3.0", "en")
    both = list(asterisk_source(root))
    assert {c.language for c in both} == {"en", "it"}
    assert {c.licence for c in both if c.speaker == "Carlo"} == {"CC-BY-3.0"}
    text = (root / "LICENSES.md").read_text()
    assert "| en | Allison | CC-BY-SA-3.0 | asterisk-core-sounds-en-g722_1.0_all.deb | unpacked/" in text
    assert "| it | Carlo | CC-BY-3.0 |" in text
    assert leftovers(root) == []


@needs_dpkg
def test_a_second_fetch_downloads_nothing_and_a_stopped_one_goes_on(tmp_path, debs):
    root = tmp_path / "data"
    asked = []

    def stop_at_second(package, folder):
        asked.append(package)
        if len(asked) == 2:
            (folder / f"{package}_1.0_all.deb").write_bytes(b"half a package")
            raise KeyboardInterrupt
        from_folder(debs)(package, folder)

    with pytest.raises(KeyboardInterrupt):
        fetch(root, ["en"], stop_at_second)
    assert leftovers(root) == []
    assert [path.name for path in (root / "deb").iterdir()] == ["asterisk-core-sounds-en-g722_1.0_all.deb"]
    fetch(root, ["en"], stop_at_second)
    assert asked == ["asterisk-core-sounds-en-g722", "asterisk-core-sounds-en", "asterisk-core-sounds-en"]
    fetch(root, ["en"], stop_at_second)
    assert len(asked) == 3


@needs_dpkg
def test_a_broken_package_is_put_aside_and_fetched_again(tmp_path, debs):
    root = tmp_path / "data"
    (root / "deb").mkdir(parents=True)
    (root / "deb" / "asterisk-core-sounds-en-g722_1.0_all.deb").write_bytes(b"not a package")
    with pytest.raises(
        DataError, match=r"g722_1\.0_all\.deb cannot be unpacked: dpkg.*put aside as .*\.broken.*start again"
    ):
        fetch(root, ["en"], from_folder(debs))
    assert leftovers(root) == []
    fetch(root, ["en"], from_folder(debs))
    assert (root / "deb" / "asterisk-core-sounds-en-g722_1.0_all.deb.broken").exists()
    assert len(list(asterisk_source(root, ["en"]))) == 7


@needs_dpkg
def test_damaged_transcripts_are_named(tmp_path, debs):
    root = tmp_path / "data"
    fetch(root, ["en"], from_folder(debs))
    (text,) = root.rglob("core-sounds-en.txt.gz")
    text.write_bytes(text.read_bytes()[:40])
    with pytest.raises(DataError, match=r"core-sounds-en\.txt\.gz: transcripts cannot be read"):
        list(asterisk_source(root, ["en"]))


def test_languages_that_are_not_there(tmp_path, debs):
    with pytest.raises(DataError, match=r"unknown languages \['de'\]; the embedded corpus has en fr it es ru"):
        fetch(tmp_path, ["en", "de"], from_folder(debs))
    message = (
        r"speech of ru is not in .*unpacked; run data_prep/00_fetch.* --languages ru, or bring your own with --source"
    )
    with pytest.raises(DataError, match=message):
        list(asterisk_source(tmp_path, ["ru"]))
    with pytest.raises(DataError, match=r"the speech of the embedded corpus is not in"):
        list(asterisk_source(tmp_path))
    with pytest.raises(DataError, match=r"debs holds no asterisk-core-sounds-ru-g722_\*\.deb; run `apt-get download"):
        fetch(tmp_path, ["ru"], from_folder(debs))
    assert len(packages(LANGUAGES)) == 10


def test_a_licence_that_is_not_stated_is_an_error():
    assert licence_of(COPYRIGHT, "en") == "CC-BY-SA-3.0"
    assert licence_of(COPYRIGHT, "it") == "CC-BY-3.0"
    with pytest.raises(DataError, match="no licence for 'en' in the package's copyright file"):
        licence_of("Files: debian/*\nLicense: GPL-2+\n", "en")


def test_without_apt_or_dpkg_it_says_how_to_bring_own_speech(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_module.shutil, "which", lambda name: None)
    own = r"data_prep/01_manifest\.py --source folder --input FOLDER --language en"
    with pytest.raises(DataError, match=rf"apt-get is not on this machine.*--deb-dir.*{own}"):
        download_with_apt("asterisk-core-sounds-en", tmp_path)
    with pytest.raises(DataError, match=rf"dpkg is not on this machine.*{own}"):
        fetch(tmp_path, ["en"], download_with_apt)


def _fake_apt(monkeypatch, results):
    """Stand in for apt-get: each call takes the next (return code, stderr) and is recorded."""
    calls = []

    def run(command, folder):
        calls.append(command)
        code, errors = results[len(calls) - 1]
        return subprocess.CompletedProcess(command, code, "", errors)

    monkeypatch.setattr(fetch_module.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(fetch_module, "_run", run)
    return calls


def test_package_lists_are_refreshed_only_when_a_download_fails(tmp_path, monkeypatch):
    calls = _fake_apt(monkeypatch, [(0, "")])
    download_with_apt("p", tmp_path)
    assert calls == [["apt-get", "download", "p"]]
    calls = _fake_apt(monkeypatch, [(100, "E: No packages found"), (0, ""), (0, "")])
    download_with_apt("p", tmp_path)
    assert calls == [["apt-get", "download", "p"], ["apt-get", "update"], ["apt-get", "download", "p"]]


def test_a_failing_download_says_why_and_what_to_do(tmp_path, monkeypatch):
    failing = [(100, ""), (100, "E: Permission denied"), (100, "W: note\nE: Unable to locate package p\n")]
    _fake_apt(monkeypatch, failing)
    monkeypatch.setattr(fetch_module.os, "geteuid", lambda: 1000)
    message = r"apt-get download p failed: E: Unable to locate package p .*`sudo apt-get update`.*check the network"
    with pytest.raises(DataError, match=message):
        download_with_apt("p", tmp_path)


def test_a_download_that_brings_nothing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_module.shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(DataError, match=r"the download of asterisk-core-sounds-en-g722 brought no \.deb"):
        fetch(tmp_path, ["en"], lambda package, folder: None)
    assert leftovers(tmp_path) == []


@pytest.mark.slow
def test_the_real_packages(tmp_path):
    from moss.data.manifest_build import ManifestSettings, build_manifest

    fetch(tmp_path, ["en"], download_with_apt)
    settings = ManifestSettings(min_duration_s=0.8, max_duration_s=12.0)
    result = build_manifest(tmp_path, asterisk_source(tmp_path, ["en"]), settings)
    assert len(result.utterances) >= 400
    assert {u.speaker for u in result.utterances} == {"Allison"}
    assert {u.licence for u in result.utterances} == {"CC-BY-SA-3.0"}
