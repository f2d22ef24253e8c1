import shutil

import pytest

from moss.data.corpus_fillets import fillets_languages, fillets_packages, fillets_source
from moss.data.fetch import fetch, from_folder
from moss.errors import DataError
from tests.debian import build_more_corpora

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="builds Debian packages: needs dpkg-deb")


@needs_dpkg
def test_lines_become_candidates(tmp_path):
    fetch(tmp_path, ["cs"], from_folder(build_more_corpora(tmp_path / "debs")), sources=["fillets"])
    assert fillets_languages(tmp_path) == ["cs"]
    found = {c.audio.stem: (c.text, c.speaker, c.left_out) for c in fillets_source(tmp_path)}
    assert found == {
        "v-hello": ('Ahoj, "rybo".', "cs-big", ""),
        "m-where": ("Kde to jsme?", "cs-small", ""),
        "k-crab": ("Konkrétně %1 hodin!", "cs-cellar-crab", "not speech"),
        "k-sing": ("La, la.", "cs-cellar-crab", ""),
        "k-unknown": ("", "cs-cellar-unknown", "recording without a transcript"),
    }
    (first, *_) = fillets_source(tmp_path, ["cs"])
    assert (first.id, first.language, first.licence) == ("fillets__cellar__cs__k-crab", "cs", "GPL-2")
    (script,) = tmp_path.rglob("dialogs_cs.lua")
    script.write_bytes(b'dialogId("x", "y", "\xe9")')
    with pytest.raises(DataError, match=r"dialogs_cs\.lua: not UTF-8"):
        list(fillets_source(tmp_path))


def test_recordings_without_texts_count_as_not_there(tmp_path):
    (tmp_path / "unpacked/fillets-ng-data-cs/usr/share/games/fillets-ng/sound").mkdir(parents=True)
    assert fillets_languages(tmp_path) == []
    with pytest.raises(DataError, match=r"unknown language 'en'; fillets has cs nl"):
        fillets_packages(["en"])
