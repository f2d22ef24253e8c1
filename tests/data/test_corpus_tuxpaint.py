import shutil

import numpy as np
import pytest
import soundfile

from moss.data.corpus_tuxpaint import stamps_folder, tuxpaint_languages, tuxpaint_source
from moss.errors import DataError
from tests.debian import STAMP


@pytest.fixture
def stamps(tmp_path):
    folder = stamps_folder(tmp_path)
    (folder / "birds").mkdir(parents=True)
    return folder / "birds"


def _record(folder, name, pitch=1):
    soundfile.write(folder / f"{name}.ogg", 0.3 * np.sin(np.arange(8000) / (9 + pitch)), 8000)


def test_texts_are_found_by_language_and_region(tmp_path, stamps):
    (stamps / "duck.txt").write_text(STAMP)
    for pitch, name in enumerate(("duck", "duck_desc", "duck_desc_fr", "duck_desc_pt_BR", "duck_zh_tw", "duck_en_GB")):
        _record(stamps, name, pitch)
    found = {c.audio.stem: (c.language, c.text, c.left_out) for c in tuxpaint_source(tmp_path)}
    assert found == {
        "duck_desc": ("en", "A duck.", ""),
        "duck_desc_fr": ("fr", "Un canard.", ""),
        "duck_desc_pt_BR": ("pt", "Um pato.", ""),
        "duck_zh_tw": ("zh", "鴨子。", ""),
        "duck_en_GB": ("en", "A duck.", ""),
    }
    (french,) = tuxpaint_source(tmp_path, ["fr"])
    assert (french.id, french.speaker, french.licence) == ("tuxpaint__birds__duck_desc_fr", "stamps-fr", "GPL-2")


def test_what_is_left_out_says_why(tmp_path, stamps):
    for name in ("duck", "drake"):
        (stamps / f"{name}.txt").write_text(STAMP)
    _record(stamps, "duck_desc_fr")
    shutil.copy(stamps / "duck_desc_fr.ogg", stamps / "drake_desc_fr.ogg")
    _record(stamps, "duck_desc_be", 2)
    _record(stamps, "duck_desc_ca", 3)
    _record(stamps, "goose_desc_fr", 4)
    _record(stamps, "apple_red", 5)
    reasons = {c.audio.stem: c.left_out for c in tuxpaint_source(tmp_path)}
    assert reasons == {
        "drake_desc_fr": "",
        "duck_desc_fr": "the same recording again",
        "duck_desc_be": "text with brackets",
        "duck_desc_ca": "recording without a transcript",
        "goose_desc_fr": "recording without a transcript",
    }


def test_all_languages_are_there_or_none(tmp_path, stamps):
    assert "ro" in tuxpaint_languages(tmp_path)
    assert tuxpaint_languages(tmp_path / "elsewhere") == []


def test_a_description_in_another_encoding_is_named(tmp_path, stamps):
    (stamps / "duck.txt").write_bytes("A duck.\nfr.utf8=Un pélican.\n".encode("latin-1"))
    _record(stamps, "duck_desc_fr")
    with pytest.raises(DataError, match=r"duck\.txt: not UTF-8: byte 0xe9"):
        list(tuxpaint_source(tmp_path))
