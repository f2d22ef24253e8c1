import shutil

import pytest

from moss.data.corpus_librivox import librivox_languages, librivox_source
from moss.data.fetch import fetch, from_folder
from tests.debian import build_more_corpora


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="builds Debian packages: needs dpkg-deb")
def test_sentences_become_candidates(tmp_path):
    assert librivox_languages(tmp_path) == []
    fetch(tmp_path, None, from_folder(build_more_corpora(tmp_path / "debs")), sources=["librivox"])
    assert librivox_languages(tmp_path) == ["en"]
    spoken, missing = librivox_source(tmp_path)
    assert (spoken.text, spoken.left_out) == ("he was not an ill disposed young man", "")
    assert (spoken.id, spoken.speaker) == ("librivox__book-0880", "librivox-austen")
    assert (missing.audio, missing.left_out) == (None, "transcript without a recording")
    assert list(librivox_source(tmp_path, ["fr"])) == []
