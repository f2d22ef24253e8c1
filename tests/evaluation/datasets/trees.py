"""Test sets of a few clips in their published layouts."""

from pathlib import Path

from tests.recordings import write_tone


def librispeech(root: Path, split: str = "test-clean") -> Path:
    for speaker, chapter, texts in (
        ("1089", "134686", ["HE HOPED", "STUFF IT"]),
        ("237", "126133", ["HERE SHE WOULD"]),
    ):
        folder = root / "LibriSpeech" / split / speaker / chapter
        names = [f"{speaker}-{chapter}-{number:04d}" for number in range(len(texts))]
        for name in names:
            write_tone(folder / f"{name}.flac", 0.5)
        lines = [f"{name} {text}\n" for name, text in zip(names, texts, strict=True)]
        (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines), encoding="utf-8")
    return root / "LibriSpeech"


def aishell_1(root: Path) -> Path:
    folder = root / "data_aishell"
    lines = []
    for split, speaker in (("test", "S0764"), ("dev", "S0724")):
        for number in (121, 122):
            name = f"BAC009{speaker}W{number:04d}"
            write_tone(folder / "wav" / split / speaker / f"{name}.wav", 0.5)
            lines.append(f"{name} 甚至 出现 交易 OK FINE 几乎 停滞\n")
    (folder / "transcript").mkdir()
    (folder / "transcript" / "aishell_transcript_v0.8.txt").write_text("".join(lines), encoding="utf-8")
    return folder


def aishell_2(root: Path) -> Path:
    folder = root / "iOS" / "test"
    for name in ("IT0011W0001", "IT0011W0002"):
        write_tone(folder / "wav" / "T0011" / f"{name}.wav", 0.5)
    names = ("IT0011W0001", "IT0011W0002")
    (folder / "wav.scp").write_text("".join(f"{name}\twav/T0011/{name}.wav\n" for name in names), encoding="utf-8")
    (folder / "trans.txt").write_text("".join(f"{name}\t换一首歌\n" for name in names), encoding="utf-8")
    return folder
