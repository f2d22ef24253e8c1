"""AISHELL-1 (data_aishell/wav/<split>/<speaker>/*.wav and one transcript file) and AISHELL-2 (wav.scp and trans.txt).

Their transcripts are cut into words by blanks, which are no part of a Chinese text and are taken out.
"""

import re
from pathlib import Path

from moss.errors import DataError
from moss.evaluation.datasets.listing import Dataset, Listed, Origin, make_dataset, subfolders, transcript_lines

DEFAULT_SPLIT = "test"

EXPECTED_1 = {"train": 120_098, "dev": 14_326, "test": 7_176}
"""Clips with transcripts of AISHELL-1. Source: the data preparation of Kaldi's aishell recipe."""
EXPECTED_2 = {"dev": 2_500, "test": 5_000}
"""Clips of AISHELL-2 for each kind of microphone. Source: the data description of Kaldi's aishell2 recipe."""

_TRANSCRIPT = Path("transcript") / "aishell_transcript_v0.8.txt"
_WORD_BLANK = re.compile(r"(?<=[^\x00-\x7f]) | (?=[^\x00-\x7f])")
_SPEAKER = re.compile(r"S\d{4}")
_MICROPHONES = ("iOS", "Android", "Mic")


def read_aishell(folder: Path, split: str | None) -> Dataset:
    """One part of AISHELL-1 or AISHELL-2, whichever the folder holds.

    Args:
        folder: data_aishell, the folder around it or wav/<split> within it; for AISHELL-2 a folder with wav.scp and
            trans.txt, or one that holds <split> or iOS/<split>.
        split: The part; None takes the one that `folder` is, else test.

    Raises:
        DataError: neither layout, or no such part; see `make_dataset` for the rest.
    """
    folder = folder.resolve()
    # The last two are for data_aishell/wav and data_aishell/wav/<split>.
    above = folder.parent
    for root, given in ((folder, None), (folder / "data_aishell", None), (above, None), (above.parent, folder.name)):
        if (root / _TRANSCRIPT).is_file():
            return _read_first(root, _choose(split, given, folder), folder)
    wanted = split or DEFAULT_SPLIT
    if _is_second(folder):
        return _read_second(folder, _choose(split, folder.name if folder.name in EXPECTED_2 else None, folder), folder)
    for part in (folder / wanted, *(folder / microphone / wanted for microphone in _MICROPHONES)):
        if _is_second(part):
            return _read_second(part, wanted, folder)
    raise DataError(
        f"{folder}: no AISHELL {wanted!r} here: neither {_TRANSCRIPT} (AISHELL-1) nor wav.scp with trans.txt "
        f"(AISHELL-2); it holds the folders {subfolders(folder)[:10]}; name the unpacked data_aishell or the part of "
        "AISHELL-2"
    )


def _choose(split: str | None, given: str | None, folder: Path) -> str:
    if split is not None and given is not None and split != given:
        raise DataError(f"{folder}: is the part {given!r} itself and not {split!r}; name the folder around it")
    return split or given or DEFAULT_SPLIT


def _read_first(root: Path, split: str, folder: Path) -> Dataset:
    part = root / "wav" / split
    speakers = subfolders(part)
    if not speakers:
        packed = len(list((root / "wav").glob("*.tar.gz")))
        advice = f"unpack the {packed} archives in {root / 'wav'}" if packed else "name another part"
        raise DataError(
            f"{folder}: no AISHELL-1 {split!r} here: {part} has no folders of speakers; {root / 'wav'} holds "
            f"{subfolders(root / 'wav')}; {advice}"
        )
    recordings = {path.stem: path for path in part.glob("*/*.wav")}
    listed = []
    for name, text in transcript_lines(root / _TRANSCRIPT):
        found = _SPEAKER.search(name)
        speaker = found.group() if found else ""
        # The file has the lines of all parts; a line of a speaker who is here belongs to this one.
        if name in recordings or speaker in speakers:
            audio = recordings.get(name, part / speaker / f"{name}.wav")
            listed.append(Listed(name=name, audio=audio, text=_joined(text), speaker=audio.parent.name))
    untranscribed = [recordings[name] for name in sorted(recordings.keys() - {entry.name for entry in listed})]
    origin = Origin(
        name=f"AISHELL-1 {split}",
        language="zh",
        licence="Apache-2.0",
        source="aishell-1",
        expected=EXPECTED_1.get(split),
    )
    return make_dataset(origin, listed, untranscribed, folder)


def _read_second(part: Path, split: str, folder: Path) -> Dataset:
    recordings = {name: part / path for name, path in transcript_lines(part / "wav.scp")}
    listed = []
    for name, text in transcript_lines(part / "trans.txt"):
        audio = recordings.get(name, part / "wav" / f"{name}.wav")
        listed.append(Listed(name=name, audio=audio, text=_joined(text), speaker=audio.parent.name))
    untranscribed = [recordings[name] for name in sorted(recordings.keys() - {entry.name for entry in listed})]
    # The set is given out for research only, under no licence with a name.
    origin = Origin(
        name=f"AISHELL-2 {split}", language="zh", licence="", source="aishell-2", expected=EXPECTED_2.get(split)
    )
    return make_dataset(origin, listed, untranscribed, folder)


def _is_second(folder: Path) -> bool:
    return (folder / "wav.scp").is_file() and (folder / "trans.txt").is_file()


def _joined(text: str) -> str:
    """Take out the blanks beside Chinese characters; those between Latin words stay."""
    return _WORD_BLANK.sub("", text)
