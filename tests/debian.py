"""Debian packages of the shape of the embedded corpus, with a few seconds of sound."""

import gzip
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

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
