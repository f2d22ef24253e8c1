"""The blocks of docs/examples.md run as they stand, on tiny random models."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from moss.generation.speech_model import SpeechModel
from tests.generation.toy import talking

PAGE = (Path(__file__).parents[2] / "docs" / "examples.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^## \d+\. (.+?)\n.*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))
MADE = {
    "Plain text": ["plain.wav", "french.wav"],
    "Pinyin": ["pinyin.wav", "mixed.wav"],
    "IPA": ["ipa.wav", "pause.wav"],
    "A voice from a clip": ["clone.wav"],
    "A wanted length": ["slow.wav", "fast.wav"],
    "A dialogue": ["dialogue.wav", "dialogue_cloned.wav"],
    "A voice from a description": ["old_man.wav", "story.wav", "two.wav"],
    "A sound": ["rain.wav"],
    "Carrying on": ["more.wav", "second.wav", "book.wav"],
    "A conversation": ["realtime.wav"],
}
"""What each block writes."""


@pytest.fixture(scope="module")
def models() -> dict[str, SpeechModel]:
    delay = {member: talking("delay", member) for member in ("tts", "ttsd", "voice_generator", "sound_effect")}
    return {**delay, "realtime": talking("realtime", "realtime")}


def test_the_page_has_the_ten_examples() -> None:
    assert list(EXAMPLES) == list(MADE)
    assert PAGE.count("```python") == 10


@pytest.mark.parametrize("name", MADE)
def test_a_block_runs_and_makes_sound(
    name: str,
    models: dict[str, SpeechModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, clip in enumerate(("speaker.wav", "speaker_1.wav", "speaker_2.wav"), start=1):
        soundfile.write(clip, np.sin(np.arange(16_000) * 0.05 * number) * 0.4, 16_000)
    scope: dict[str, Any] = dict(models)
    exec(compile(EXAMPLES[name], f"docs/examples.md, {name}", "exec"), scope)
    for wav in MADE[name]:
        samples, rate_hz = soundfile.read(wav)
        assert rate_hz == 250
        # 2 to 12 frames a go, 20 samples each.
        assert len(samples) >= 20
        assert len(samples) % 20 == 0
        assert np.abs(samples).max() > 0
    written = {path.name for path in tmp_path.iterdir()} - {"speaker.wav", "speaker_1.wav", "speaker_2.wav"}
    assert written == set(MADE[name])
    if name == "A conversation":
        assert capsys.readouterr().out.count("torch.Size([20])") == 12
    if name == "Carrying on":
        assert len(scope["book"].parts) == capsys.readouterr().out.count("max_frames") > 1
