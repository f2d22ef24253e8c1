"""Fields of a request become the prompt of the model's member."""

from typing import Any

import pytest
import torch

from moss.config.model import Member
from moss.errors import DataError, GenerationError
from moss.generation.prompts import PromptBuilder, joined_text
from moss.generation.realtime_loop import RealtimePrompt
from moss.generation.requests import Request, Target
from moss.generation.segments import AudioSegment
from moss.generation.speech import Speech
from moss.sequence.prompt import Conversation, PromptMode, Turn, UserPrompt
from tests.generation.toy import CausalTokenizer, talking

A, B = (torch.randint(0, 16, (frames, 4), generator=torch.Generator().manual_seed(frames)) for frames in (5, 7))


@pytest.fixture(scope="module")
def builders() -> dict[str, PromptBuilder]:
    members = {"tts": "delay", "ttsd": "delay", "voice_generator": "delay", "sound_effect": "delay"}
    members |= {"realtime": "realtime"}
    return {member: talking(architecture, member)._prompts for member, architecture in members.items()}


def rows(builder: PromptBuilder, **fields: Any) -> torch.Tensor:
    made = builder.prompt(builder.resolve(Request(**fields)))
    assert isinstance(made, torch.Tensor)
    return made


def test_fields_reach_the_prompt(builders: dict[str, PromptBuilder]) -> None:
    tts = builders["tts"]
    shown = UserPrompt(text="Bonjour.", language="French", tokens=25, reference=[A], quality="high")
    expected = tts.layout.conversation(shown)
    fields: dict[str, Any] = {"text": "Bonjour.", "language": "fr", "reference": A, "quality": "high"}
    assert torch.equal(rows(tts, **fields, tokens=25), expected)
    # Two seconds of 12.5 frames.
    assert torch.equal(rows(tts, **fields, duration_s=2.0), expected)
    voice = UserPrompt(text="Hi.", instruction="an old man")
    builder = builders["voice_generator"]
    assert torch.equal(rows(builder, text="Hi.", instruction="an old man"), builder.layout.conversation(voice))
    builder = builders["sound_effect"]
    sound = UserPrompt(ambient_sound="rain", tokens=50)
    assert torch.equal(rows(builder, ambient_sound="rain", tokens=50), builder.layout.conversation(sound))


def test_a_prefix_is_carried_on_behind_its_words(builders: dict[str, PromptBuilder]) -> None:
    tts = builders["tts"]
    expected = tts.layout.conversation(UserPrompt(text="So it was. And on."), [A], PromptMode.continuation)
    assert torch.equal(rows(tts, text="And on.", prefix=A, prompt_text="So it was."), expected)
    assert torch.equal(rows(tts, text="So it was. And on.", prefix=A, prompt_text=""), expected)
    # An earlier generation knows its words.
    earlier = Speech(
        id="e",
        text="So it was.",
        segments=[AudioSegment(A, 0)],
        stop_reason="end",
        seed=0,
        num_codebooks=4,
        tokenizer=CausalTokenizer(),
    )
    assert torch.equal(rows(tts, text="And on.", prefix=earlier), expected)
    # The length is that of prefix and answer together, as in training.
    counted = tts.layout.conversation(UserPrompt(text="So. On.", tokens=15), [A], PromptMode.continuation)
    assert torch.equal(rows(tts, text="On.", prefix=A, prompt_text="So.", tokens=10), counted)


def test_a_dialogue_carries_on_the_clips_of_its_speakers(builders: dict[str, PromptBuilder]) -> None:
    ttsd = builders["ttsd"]
    text = "[S1] How are you? [S2] Fine."
    plain = ttsd.layout.conversation(UserPrompt(text=text, reference=[A, None]))
    assert torch.equal(rows(ttsd, text=text, references=[A, None]), plain)
    cloned = UserPrompt(text=f"[S1] I am A.[S2] I am B.{text}", reference=[A, B])
    expected = ttsd.layout.conversation(cloned, [torch.cat([A, B])], PromptMode.continuation)
    words = ["[S1] I am A.", "I am B."]
    assert torch.equal(rows(ttsd, text=text, references=[A, B], prompt_texts=words), expected)


def test_only_realtime_takes_clips_as_loud_as_they_are(builders: dict[str, PromptBuilder]) -> None:
    assert {member for member, builder in builders.items() if not builder.clips.normalise} == {"realtime"}


def test_realtime_speaks_a_turn(builders: dict[str, PromptBuilder]) -> None:
    builder = builders["realtime"]
    made = builder.prompt(builder.resolve(Request(text="Hi there.", reference=A)))
    assert isinstance(made, RealtimePrompt)
    conversation = Conversation(reference=A, turns=[Turn("assistant", "Hi there.")])
    assert torch.equal(made.rows, builder.layout.conversation(conversation))
    assert list(made.text_ids) == builder.layout.encode("Hi there.")
    made = builder.prompt(builder.resolve(Request(text="And on.", prefix=B, prompt_text="So.")))
    assert isinstance(made, RealtimePrompt)
    turns = [Turn("assistant", "So.", B), Turn("assistant", "And on.")]
    assert torch.equal(made.rows, builder.layout.conversation(Conversation(turns=turns)))


def test_the_language_of_a_corpus_is_no_wish(builders: dict[str, PromptBuilder]) -> None:
    builder = builders["realtime"]
    plain = builder.prompt(builder.resolve(Request(text="Hi.")))
    drawn = Request(text="Hi.", language="en", target=Target(wav="a.wav", duration_s=1.0))
    made = builder.prompt(builder.resolve(drawn))
    assert isinstance(plain, RealtimePrompt)
    assert isinstance(made, RealtimePrompt)
    assert torch.equal(made.rows, plain.rows)


@pytest.mark.parametrize(
    ("member", "fields", "error", "message"),
    [
        ("tts", {"reference": A, "references": [A]}, GenerationError, "reference and references are both given"),
        ("tts", {"tokens": 9, "duration_s": 1.0}, GenerationError, "tokens and duration_s are both given"),
        ("tts", {"duration_s": -1.0}, GenerationError, r"duration_s=-1\.0: expected seconds, more than 0"),
        ("tts", {"prefix": A}, GenerationError, "prefix: its words are needed too; give prompt_text, or prompt_text="),
        ("tts", {"prompt_text": "So."}, GenerationError, "prompt_text: says the words of `prefix`, which is missing"),
        (
            "tts",
            {"prefix": A, "prompt_texts": ["a"], "reference": A},
            GenerationError,
            "prompt_texts belong to the speakers' references; leave prefix and prompt_text out",
        ),
        ("tts", {"prompt_texts": ["a"], "references": [A, B]}, GenerationError, "1 texts for 2 references; give the"),
        ("tts", {"text": None}, DataError, "text: member=tts needs it"),
        ("voice_generator", {}, DataError, "instruction: member=voice_generator needs it"),
        (
            "realtime",
            {"instruction": "old"},
            GenerationError,
            "instruction: a Realtime model has no such field; leave it",
        ),
        (
            "realtime",
            {"language": "klingon"},
            GenerationError,
            "language: .* it takes text, reference, prefix, prompt_",
        ),
        ("realtime", {"tokens": 9}, GenerationError, "tokens: a Realtime model has no such field"),
        ("realtime", {"duration_s": 1.0}, GenerationError, "duration_s: a Realtime model has no such field"),
        ("realtime", {"reference": A, "prompt_texts": ["a"]}, GenerationError, "prompt_texts: a Realtime model has no"),
        ("ttsd", {"tokens": 9}, GenerationError, "tokens: the prompt format moss_ttsd_v1 has no place .* leave it out"),
        ("ttsd", {"duration_s": 1.0}, GenerationError, "duration_s: the prompt format moss_ttsd_v1 has no place"),
        ("realtime", {"references": [A, B]}, GenerationError, "Realtime models speak with one voice, got 2 clips"),
        ("realtime", {"text": " "}, GenerationError, "text: a Realtime model needs words to speak"),
    ],
)
def test_fields_that_do_not_go_together(
    builders: dict[str, PromptBuilder], member: str, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    builder = builders[member]
    with pytest.raises(error, match=message):
        builder.prompt(builder.resolve(Request(**({"text": "Hi."} | fields))))


@pytest.mark.parametrize(
    ("before", "text", "joined"),
    [
        ("So.", "On.", "So. On."),
        ("So. ", "On.", "So. On."),
        ("", "On.", "On."),
        ("你好。", "再见", "你好。再见"),
        ("你好。", "Bye", "你好。 Bye"),
    ],
)
def test_texts_are_joined_as_their_script_is_written(before: str, text: str, joined: str) -> None:
    assert joined_text(before, text, Member.tts) == joined


def test_room_counts_every_position_of_the_longest_answer(builders: dict[str, PromptBuilder]) -> None:
    for member, fields in (("tts", {}), ("realtime", {})):
        builder = builders[member]
        prompt = builder.prompt(builder.resolve(Request(text="Hello there.", **fields)))
        longest = builder.config.max_positions - builder.num_positions(prompt, 0)
        builder.check_room(prompt, longest)
        with pytest.raises(GenerationError, match=rf"and {longest + 1} frames may follow, but the model holds 800"):
            builder.check_room(prompt, longest + 1)
