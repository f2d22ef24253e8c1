import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from moss.data.corpus import EFFECTS
from moss.data.manifest import read_manifest
from moss.data.member_sets import _EFFECTS, MEMBERS, build_member_sets
from moss.errors import DataError
from tests.debian import COPYRIGHT

VOICES = {"en": "en_US_f_Allison", "fr": "fr_CA_f_June", "it": "it_IT_m_Carlo", "ru": "ru_RU_f_IvrvoiceRU"}


def write_corpus(root: Path, num_clips: int = 12) -> None:
    """What fetching leaves behind: clips of 1.65 s that fit every set, and the sound effects."""
    from G722 import G722

    for pitch, (language, voice) in enumerate(VOICES.items()):
        wave = [int(9000 * np.sin(n / (9 + pitch))) for n in range(26_400)]
        audio = bytes(G722(16000, 64000).encode(wave))
        name = f"asterisk-core-sounds-{language}"
        sounds = root / "unpacked" / f"{name}-g722" / "usr/share/asterisk/sounds" / voice
        sounds.mkdir(parents=True)
        for index in range(num_clips):
            (sounds / f"clip{index:02d}.g722").write_bytes(audio + bytes([index]) * 160)
        recordings, texts = (root / "unpacked" / n / "usr/share/doc" / n for n in (f"{name}-g722", name))
        recordings.mkdir(parents=True)
        texts.mkdir(parents=True)
        (recordings / "copyright").write_text(COPYRIGHT)
        lines = "".join(f"clip{index:02d}: word number {index} in {language}.\n" for index in range(num_clips))
        (texts / f"core-sounds-{language}.txt.gz").write_bytes(gzip.compress(lines.encode()))
    for name in _EFFECTS:
        path = root / "unpacked" / EFFECTS.name / "usr/share/tuxpaint/stamps" / f"{name}.ogg"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.sin(np.arange(22_050) / 20).astype(np.float32), 44_100)
        path.with_suffix(".txt").write_text(f"A {path.stem}.\nfr.utf8=Autre chose.\n")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    write_corpus(folder)
    return folder


def test_every_member_has_eight_examples_to_train_on(root):
    folders = build_member_sets(root)
    assert tuple(folders) == MEMBERS
    for member, folder in folders.items():
        rows = read_manifest(folder / "utterances.jsonl")
        examples = {row.extra.get("conversation", row.id): row.split for row in rows if row.split != "reference"}
        assert sorted(examples.values()) == ["heldout"] * 2 + ["train"] * 8, member
        assert all(Path(row.audio).is_file() and row.licence for row in rows)


def test_a_dialogue_is_two_voices_with_a_reference_each(root):
    folder = build_member_sets(root, ["ttsd"])["ttsd"]
    rows = {row.id: row for row in read_manifest(folder / "utterances.jsonl")}
    dialogue = rows["dialogue-03"]
    assert dialogue.text == "[S1] word number 3 in fr. [S2] word number 3 in it."
    first, second = (rows[name] for name in dialogue.extra["reference_ids"])
    assert (first.speaker, second.speaker) == ("June", "Carlo")
    assert {first.split, second.split} == {"reference"}
    assert first.text not in dialogue.text
    wave, rate = soundfile.read(dialogue.audio)
    # Two clips of 1.67 s (0.02 s of the tail make them differ) and a pause.
    assert (rate, len(wave)) == (16_000, round((2 * (1.65 + 0.02) + 0.2) * 16_000))


def test_instructions_describe_the_speaker(root):
    folder = build_member_sets(root, ["voice_generator"])["voice_generator"]
    described = {row.speaker: row.extra["instruction"] for row in read_manifest(folder / "utterances.jsonl")}
    assert described["Carlo"].startswith("A man speaks Italian")
    assert described["June"].startswith("A woman speaks French")


def test_sound_effects_have_a_description_and_no_text(root):
    folder = build_member_sets(root, ["sound_effect"])["sound_effect"]
    rows = read_manifest(folder / "utterances.jsonl")
    assert {row.text for row in rows} == {""}
    assert rows[0].extra == {"ambient_sound": "A duck."}


def test_a_conversation_is_a_question_and_an_answer(root):
    folder = build_member_sets(root, ["realtime"])["realtime"]
    rows = [row for row in read_manifest(folder / "utterances.jsonl") if row.extra]
    question, answer = rows[:2]
    assert (question.extra["role"], question.speaker, answer.extra["role"], answer.speaker) == (
        "user",
        "Carlo",
        "assistant",
        "Allison",
    )
    assert question.extra["conversation"] == answer.extra["conversation"]


def test_building_again_changes_nothing(root):
    path = build_member_sets(root, ["ttsd"])["ttsd"] / "utterances.jsonl"
    before = path.read_bytes()
    build_member_sets(root, ["ttsd"])
    assert path.read_bytes() == before
    assert json.loads(before.splitlines()[0])["audio"] == "audio/dialogue-00.wav"


def test_what_is_missing_is_named_with_the_command_that_brings_it(tmp_path):
    with pytest.raises(DataError, match=r"unknown members \['ttds'\]; there are sets for tts ttsd"):
        build_member_sets(tmp_path, ["ttds"])
    with pytest.raises(DataError, match=r"00_fetch_speech.py --root .* --effects"):
        build_member_sets(tmp_path, ["sound_effect"])
    write_corpus(tmp_path, num_clips=5)
    with pytest.raises(DataError, match=r"the speech of en in .* has 5 clips of 1\.6 to 3\.2 s, 10 are needed"):
        build_member_sets(tmp_path, ["tts"])
