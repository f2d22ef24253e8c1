"""Debian packages of the shape of the embedded corpora, with a few seconds of sound."""

import gzip
import io
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile

COPYRIGHT = """Format: http://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2003-2010, Somebody
License: CC-BY-SA-3.0

Files: it-*
Copyright: 2012, Somebody else
License: CC-BY-3.0

Files: debian/*
License: GPL-2+
"""
TRANSCRIPTS = """\ufeff; Core sounds

hello: Hello  there.
letters/at: at [@]
beep: <beep>
silence/1: (1 second of silence)
missing: This was never recorded.
long: It says: yes.
"""
_CLIPS = ("hello", "letters/at", "beep", "long", "extra")
_VOICES = {"en": "en_US_f_Allison", "it": "it_IT_m_Carlo"}


def build_corpus(folder: Path, languages: Sequence[str]) -> Path:
    """Four packages for two languages, in the shape that `fetch` downloads."""
    from G722 import G722

    wave = [int(9000 * np.sin(n / 9)) for n in range(16000)]
    audio = bytes(G722(16000, 64000).encode(wave))
    folder.mkdir()
    for language in languages:
        name = f"asterisk-core-sounds-{language}"
        sounds = f"usr/share/asterisk/sounds/{_VOICES[language]}"
        clips = {f"{sounds}/{clip}.g722": audio for clip in _CLIPS}
        _build(folder, f"{name}-g722", clips | {f"usr/share/doc/{name}-g722/copyright": COPYRIGHT.encode()})
        texts = {f"usr/share/doc/{name}/core-sounds-{language}.txt.gz": gzip.compress(TRANSCRIPTS.encode())}
        _build(folder, name, texts | {f"usr/share/doc/{name}/copyright": COPYRIGHT.encode()})
    return folder


STAMP = """A duck.
fr.utf8=Un canard.
be.utf8=Качка (птушка).
pt.utf8=Um pato.
zh_tw.utf8=鴨子。
"""
_STAMPS = ("_desc", "_desc_fr", "_desc_be", "_desc_ca", "_desc_pt_BR", "_zh_tw", "")
_DIALOGS = """
dialogId("v-hello", "font_big", "Hello, \\"fish\\".")
dialogStr("Ahoj, \\"rybo\\".")


dialogId("m-where", "font_small", "Where are we?")
dialogStr("Kde  to jsme?")

dialogId("k-crab", "font_crab", "To be specific, %1 hours!")
dialogStr("Konkrétně %1 hodin!")

dialogId("k-sing", "font_crab", "La.")
dialogStr("La, la.")
"""
_TRANSCRIPTION = """<s> he was not an ill disposed young man </s> (book-0880)
<s> nobody recorded this </s> (book-0890)
"""


def build_more_corpora(folder: Path) -> Path:
    """The packages of the other corpora, each with a handful of recordings."""
    folder.mkdir(exist_ok=True)
    stamps = "usr/share/tuxpaint/stamps/animals"
    files = {f"{stamps}/duck{name}.ogg": sound("ogg", pitch) for pitch, name in enumerate(_STAMPS)}
    files[f"{stamps}/drake_desc_fr.ogg"] = files[f"{stamps}/duck_desc_fr.ogg"]
    files |= {f"{stamps}/{name}.txt": STAMP.encode() for name in ("duck", "drake")}
    _build(folder, "tuxpaint-stamps-default", files | _copyright("tuxpaint-stamps-default"))
    game = "usr/share/games/fillets-ng"
    for pitch, language in enumerate(("cs", "nl")):
        name = f"fillets-ng-data-{language}"
        names = ("v-hello", "m-where", "k-crab", "k-sing", "k-unknown")
        clips = {f"{game}/sound/cellar/{language}/{clip}.ogg": sound("ogg", 20 + pitch) for clip in names}
        _build(folder, name, clips | _copyright(name))
    scripts = {f"{game}/script/cellar/dialogs_{language}.lua": _DIALOGS.encode() for language in ("cs", "nl")}
    _build(folder, "fillets-ng-data", scripts | _copyright("fillets-ng-data"))
    books = "usr/share/pocketsphinx/test/data/librivox"
    texts = {f"{books}/transcription": _TRANSCRIPTION.encode(), f"{books}/book-0880.wav": sound("wav", 30)}
    _build(folder, "pocketsphinx-testdata", texts | _copyright("pocketsphinx-testdata"))
    return folder


def sound(kind: str, pitch: int) -> bytes:
    """One second of a sine, encoded."""
    buffer = io.BytesIO()
    wave = 0.3 * np.sin(np.arange(22_050) / (9 + pitch))
    soundfile.write(buffer, wave, 22_050, format=kind.upper())
    return buffer.getvalue()


def _copyright(name: str) -> dict[str, bytes]:
    return {f"usr/share/doc/{name}/copyright": COPYRIGHT.encode()}


def _build(folder: Path, name: str, files: Mapping[str, bytes]) -> None:
    tree = folder / "tree"
    for path, content in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(content)
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: x\n"
    )
    target = folder / f"{name}_1.0_all.deb"
    subprocess.run(["dpkg-deb", "--build", "-Znone", str(tree), str(target)], check=True, capture_output=True)
    shutil.rmtree(tree)
