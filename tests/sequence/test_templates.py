"""Prompt formats: what each renders, and that its hash tells all of them apart."""

import dataclasses

import pytest
import torch

from moss.config.model import Template
from moss.sequence.prompt import UserPrompt, content_string, user_message
from moss.sequence.templates import TEMPLATES, NullReference, PromptTemplate

CODES = torch.zeros(2, 3, dtype=torch.long)
DELAY, DIALOGUE = TEMPLATES[Template.moss_tts_delay_v1], TEMPLATES[Template.moss_ttsd_v1]
LOCAL, LOCAL_V15 = TEMPLATES[Template.moss_tts_local_v1], TEMPLATES[Template.moss_tts_local_v15]
FULL = UserPrompt(
    text="T", instruction="I", tokens=7, quality="Q", sound_event="E", ambient_sound="A", language="L", scene="S"
)


def test_every_format_has_its_name_and_its_own_hash() -> None:
    assert set(TEMPLATES) == set(Template)
    assert all(template.name is name for name, template in TEMPLATES.items())
    assert len({template.hash for template in TEMPLATES.values()}) == len(TEMPLATES)


def test_hash_of_the_first_format_is_the_one_in_old_checkpoints() -> None:
    assert DELAY.hash == "45cfaf71aa2880f5"


@pytest.mark.parametrize(
    "change",
    [
        {"text": DELAY.text + " "},
        {"null_reference": NullReference.none_line},
        {"numbered_references": False},
        {"normalise": False},
        {"strip": True},
        {"apart": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_hash_depends_on_every_rule(change: dict[str, object]) -> None:
    assert dataclasses.replace(DELAY, **change).hash != DELAY.hash


def test_fields_of_delay_and_local() -> None:
    assert content_string(user_message(FULL, DELAY)) == (
        "<user_inst>\n- Reference(s):\nNone\n- Instruction:\nI\n- Tokens:\n7\n- Quality:\nQ\n- Sound Event:\nE\n"
        "- Ambient Sound:\nA\n- Language:\nL\n- Text:\nT\n</user_inst>"
    )
    assert user_message(FULL, LOCAL) == user_message(FULL, DELAY) == user_message(FULL)


def test_fields_of_dialogues() -> None:
    assert content_string(user_message(FULL, DIALOGUE)) == (
        "<user_inst>\n- Reference(s):\nNone\n- Instruction:\nI\n- Tokens:\nNone\n- Quality:\nQ\n- Sound Event:\nE\n"
        "- Ambient Sound:\nA\n- Language:\nL\n- Scene:\nS\n- Text:\nT\n</user_inst>"
    )
    assert "- Scene:\nNone\n- Text:\nNone\n" in content_string(user_message(UserPrompt(), DIALOGUE))


@pytest.mark.parametrize(
    ("template", "reference", "shown"),
    [
        (DELAY, None, "None"),
        (DELAY, [None, None], ""),
        (DELAY, [None, CODES, None, CODES], "[S2]:\n<|audio|>\n[S4]:\n<|audio|>"),
        (DIALOGUE, None, "None"),
        (DIALOGUE, [None, CODES, None], "[S1]: None\n[S2]:\n<|audio|>\n[S3]: None"),
        (DIALOGUE, [None, None], "[S1]: None\n[S2]: None"),
        (LOCAL, [None, CODES], "[S2]:\n<|audio|>"),
        (LOCAL_V15, None, "None"),
        (LOCAL_V15, [None], "None"),
        (LOCAL_V15, [None, CODES], "<|audio|>"),
        (LOCAL_V15, [CODES, CODES], "<|audio|><|audio|>"),
    ],
)
def test_references(template: PromptTemplate, reference: list[torch.Tensor | None] | None, shown: str) -> None:
    content = content_string(user_message(UserPrompt(text="T", reference=reference), template))
    assert f"- Reference(s):\n{shown}\n- Instruction:\n" in content


def test_stripped_fields() -> None:
    prompt = UserPrompt(text=" T ", language=" L\n", instruction="  ")
    content = content_string(user_message(prompt, LOCAL_V15))
    assert "- Instruction:\nNone\n" in content
    assert "- Language:\nL\n- Text:\n T \n</user_inst>" in content
    assert "- Language:\n L\n\n- Text:\n T \n" in content_string(user_message(prompt, LOCAL))


def test_pieces_of_a_format_that_is_tokenised_apart() -> None:
    before, none, middle, text, end = user_message(UserPrompt(text="T"), LOCAL_V15).segments
    assert isinstance(before, str)
    assert isinstance(middle, str)
    assert before.endswith("(s):\n")
    assert (none, text, end) == ("None", "T", "\n</user_inst>")
    assert middle.endswith("- Text:\n")


@pytest.mark.parametrize("template", [DELAY, DIALOGUE, LOCAL, LOCAL_V15])
def test_braces_stay(template: PromptTemplate) -> None:
    content = content_string(user_message(UserPrompt(text="{language} {0}", instruction="{text}"), template))
    assert content.count("{language} {0}") == content.count("{text}") == 1


def test_has() -> None:
    assert DIALOGUE.has("scene")
    assert not DIALOGUE.has("tokens")
    assert not DELAY.has("scene")
