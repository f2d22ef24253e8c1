"""Fields become prompts: what each member needs, refuses and passes on."""

from typing import Any

import pytest
import torch

from moss.config.model import Member, Template
from moss.errors import DataError
from moss.sequence.members import member_prompt, realtime_prompt
from moss.sequence.prompt import Placeholder, Turn

DELAY, LOCAL, DIALOGUE = Template.moss_tts_delay_v1, Template.moss_tts_local_v1, Template.moss_ttsd_v1
CODES = torch.zeros(2, 3, dtype=torch.long)


def test_every_field_arrives() -> None:
    prompt = member_prompt(
        Member.tts,
        LOCAL,
        text="hello",
        references=[CODES],
        language="fr",
        instruction="I",
        tokens=5,
        ambient_sound="A",
        sound_event="E",
        quality="Q",
    )
    assert prompt.reference is not None
    assert prompt.reference[0] is CODES
    assert (prompt.text, prompt.language, prompt.instruction, prompt.tokens) == ("hello", "French", "I", 5)
    assert (prompt.ambient_sound, prompt.sound_event, prompt.quality, prompt.scene) == ("A", "E", "Q", None)


def test_only_the_delay_format_normalises() -> None:
    text = "Line one.\nLine two..."
    assert member_prompt(Member.tts, DELAY, text=text).text == "Line one.。Line two。"
    for template in (LOCAL, Template.moss_tts_local_v15):
        assert member_prompt(Member.tts, template, text=text).text == text
    dialogue = "[S1]Line one.\nLine two..."
    assert member_prompt(Member.ttsd, DIALOGUE, text=dialogue).text == dialogue


MARKED = [
    "nin2 hao3，jin1 tian1",
    "say /həˈloʊ/ now",
    "/tə ˈdeɪ/, /a.b/",
    "他说[pause 3.2s]。Then [pause 0.5s] stop",
    "他[pause 1.5s]走了",
]


@pytest.mark.parametrize("text", MARKED)
@pytest.mark.parametrize("template", [DELAY, LOCAL, Template.moss_tts_local_v15])
def test_pronunciation_and_pauses_pass_untouched(template: Template, text: str) -> None:
    assert member_prompt(Member.tts, template, text=text).text == text


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        # Blanks appear between Latin letters and ideographs, as everywhere in a text.
        ("重chong2庆", "重 chong2 庆"),
        ("你好/tɛst/世界", "你好/tɛst/ 世界"),
        # A long dash or dots are rewritten inside /IPA/ too.
        ("/həˈloʊ --wɜld/", "/həˈloʊ。wɜld/"),
        ("[pause  1.5s]", "[pause 1.5s]"),
    ],
)
def test_what_the_published_normaliser_changes(text: str, normalised: str) -> None:
    assert member_prompt(Member.tts, DELAY, text=text, reference=True).text == normalised
    assert member_prompt(Member.tts, LOCAL, text=text).text == text


@pytest.mark.parametrize("member", [Member.tts, Member.voice_generator])
def test_empty_lists_and_languages_are_none(member: Member) -> None:
    prompt = member_prompt(member, DELAY, text="a", references=[], language="", instruction="low voice")
    assert prompt.reference is None
    assert prompt.language is None


def test_each_member_with_what_it_needs() -> None:
    assert member_prompt(Member.sound_effect, DELAY, ambient_sound="rain", tokens=9).text is None
    assert member_prompt(Member.voice_generator, DELAY, text="a", instruction="old man").instruction == "old man"
    prompt = member_prompt(
        Member.ttsd, DIALOGUE, text="[S1]a[S2]b", references=[None, Placeholder(3)], scene="a café", tokens=9
    )
    assert prompt.reference == [None, Placeholder(3)]
    assert (prompt.scene, prompt.text) == ("a café", "[S1]a[S2]b")


@pytest.mark.parametrize(
    ("member", "template", "fields", "message"),
    [
        (Member.tts, DELAY, {}, "text: member=tts needs it; give it"),
        (Member.tts, LOCAL, {"text": "  "}, "text: member=tts needs it"),
        (Member.tts, DELAY, {"text": "\u200b"}, r"text: nothing speakable is left of '\\u200b'; give words"),
        (Member.ttsd, DIALOGUE, {}, "text: member=ttsd needs it"),
        (Member.voice_generator, DELAY, {"text": "a"}, "instruction: member=voice_generator needs it"),
        (
            Member.voice_generator,
            DELAY,
            {"text": "a", "instruction": "b", "references": [CODES]},
            "references: member=voice_generator takes none; leave it out",
        ),
        (Member.sound_effect, DELAY, {"tokens": 3}, "ambient_sound: member=sound_effect needs it"),
        (Member.sound_effect, DELAY, {"ambient_sound": "a", "text": "b"}, "text: member=sound_effect takes none"),
        (Member.realtime, Template.moss_tts_realtime_v1, {"text": "a"}, "member=realtime speaks conversations; build"),
        (Member.tts, DELAY, {"text": "a", "language": "xx"}, "language 'xx' is unknown"),
        (Member.tts, DELAY, {"text": "a", "scene": "b"}, "scene: the prompt format moss_tts_delay_v1 has no place"),
        (Member.tts, DELAY, {"text": "a", "tokens": 0}, "tokens: a length of 0 frames is impossible; give at least 1"),
        (
            Member.tts,
            DELAY,
            {"text": "a", "references": [CODES, CODES[:0]]},
            "references: clip 2 has no frames; give null for a speaker without a clip",
        ),
        (Member.ttsd, DIALOGUE, {"text": "no tags"}, "has no speaker tag"),
        (Member.ttsd, DIALOGUE, {"text": "[S1]a[S3]b"}, r"first appear as \[S1\] \[S3\]"),
        (Member.ttsd, DIALOGUE, {"text": "[S1]a[S2]b", "references": [CODES]}, r"tag \[S2\] has no reference"),
        (Member.ttsd, DIALOGUE, {"text": "[S1]a", "references": [CODES, None]}, "2 references for 1 speakers: some"),
    ],
)
def test_errors(member: Member, template: Template, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        member_prompt(member, template, **fields)


def test_realtime_prompt() -> None:
    prompt = realtime_prompt("hello", CODES)
    assert prompt.reference is CODES
    assert list(prompt.turns) == [Turn("assistant", "hello")]
    with pytest.raises(DataError, match="text: member=realtime needs words to speak, got ' '"):
        realtime_prompt(" ")
