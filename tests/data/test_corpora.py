import shutil

import pytest

from moss.data.corpora import CORPORA, fetched_source, licence_rows, packages_of
from moss.data.fetch import fetch, from_folder
from moss.errors import DataError
from tests.debian import build_corpus, build_more_corpora

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="builds Debian packages: needs dpkg-deb")


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """A data folder with every corpus, asterisk in English only."""
    root = tmp_path_factory.mktemp("corpora")
    debs = build_more_corpora(build_corpus(root / "debs", ["en"]))
    fetch(root, ["en"], from_folder(debs))
    fetch(root, None, from_folder(debs), sources=["tuxpaint", "fillets", "librivox"])
    return root


@needs_dpkg
def test_whatever_was_fetched_is_read(fetched):
    found = [(c.source, c.language) for c in fetched_source(fetched) if not c.left_out]
    assert sorted(set(found)) == [
        ("asterisk", "en"), ("fillets", "cs"), ("fillets", "nl"), ("librivox", "en"),
        ("tuxpaint", "en"), ("tuxpaint", "fr"), ("tuxpaint", "pt"), ("tuxpaint", "zh"),
    ]  # fmt: skip
    assert {c.source for c in fetched_source(fetched, ["en"])} == {"asterisk", "tuxpaint", "librivox"}
    ids = [c.id for c in fetched_source(fetched)]
    assert len(ids) == len(set(ids))


@needs_dpkg
def test_licences_are_recorded_for_every_corpus(fetched):
    rows = {row.package.name: (row.language, row.licence) for row in licence_rows(fetched)}
    assert rows["asterisk-core-sounds-en-g722"] == ("en", "CC-BY-SA-3.0")
    assert rows["fillets-ng-data-nl"] == ("nl", "GPL-2")
    assert rows["pocketsphinx-testdata"] == ("en", "CC-BY-SA-3.0")
    text = (fetched / "LICENSES.md").read_text()
    for name in rows:
        assert f"{name}_1.0_all.deb | unpacked/{name}/usr/share/doc/{name}/copyright |" in text
    assert all(c.licence for c in fetched_source(fetched) if not c.left_out)


@needs_dpkg
def test_a_language_that_is_not_there_is_named(fetched):
    with pytest.raises(DataError, match=r"the speech of it is not in .*unpacked; run .* --languages it, or bring"):
        list(fetched_source(fetched / "empty", ["it"]))
    with pytest.raises(DataError, match=r"the speech of the embedded corpus is not in"):
        list(fetched_source(fetched / "empty"))


def test_packages_of_corpora_and_languages():
    assert [p.name for p in packages_of(["librivox", "fillets"], ["nl", "en"])] == [
        "pocketsphinx-testdata", "fillets-ng-data-nl", "fillets-ng-data",
    ]  # fmt: skip
    assert len(packages_of(list(CORPORA))) == 10 + 1 + 3 + 1
    assert packages_of(["tuxpaint", "tuxpaint"]) == packages_of(["tuxpaint"])


def test_unknown_corpora_and_languages_are_refused():
    with pytest.raises(DataError, match=r"unknown sources \['x'\]; there are asterisk tuxpaint fillets librivox"):
        packages_of(["asterisk", "x"])
    with pytest.raises(DataError, match=r"unknown languages \['xx'\]; the embedded corpus has cs nl"):
        packages_of(["fillets"], ["cs", "xx"])
    with pytest.raises(DataError, match=r"the source librivox has none of \['cs'\]; it has en"):
        packages_of(["fillets", "librivox"], ["cs"])
