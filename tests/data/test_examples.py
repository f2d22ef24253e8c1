"""Utterances as examples: the prompt of each member, conversations, and lengths that need no codes."""

import dataclasses
import logging
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moss.config.compose import load_config
from moss.config.model import Member, ModelConfig, Template, TextTokenizerConfig, TextTokenizerKind
from moss.config.train import TrainConfig
from moss.data.examples import Draw, ExampleBuilder, Item, find_items
from moss.data.shard import ShardDataset
from moss.data.shard_writer import write_shards
from moss.data.text_tokenizer import TextTokenizer, build_text_tokenizer
from moss.errors import DataError
from moss.sequence.layout import build_layout
from moss.sequence.prompt import Conversation, UserPrompt
from moss.spec import IGNORE_LABEL
from tests.tiny import CARD, tiny_coded

NO_DRAW = Draw()
ARCHITECTURES = {"delay": "delay_xs", "local": "local_xs", "local_v15": "local_v15_xs", "realtime": "realtime_xs"}


@cache
def model_of(architecture: str) -> ModelConfig:
    """The small model of an architecture, with as many codebooks as the tiny shards."""
    words = [f"model={ARCHITECTURES[architecture]}", "model.num_codebooks=4", "data.shards=[x]"]
    return load_config(TrainConfig, "train", words).model


@cache
def text_tokenizer() -> TextTokenizer:
    return build_text_tokenizer(TextTokenizerConfig(kind=TextTokenizerKind.compact))


def builder_of(architecture: str = "delay", member: Member = Member.tts, **changes: Any) -> ExampleBuilder:
    """An example builder on the compact text tokenizer."""
    layout = build_layout(dataclasses.replace(model_of(architecture), **changes), text_tokenizer().encode)
    return ExampleBuilder(layout, Member.realtime if architecture == "realtime" else member)


def shards(folder: Path, *coded: Any) -> ShardDataset:
    write_shards(folder, coded, CARD)
    return ShardDataset(folder)


def build(builder: ExampleBuilder, dataset: ShardDataset, item: Item, draw: Draw = NO_DRAW) -> tuple[Tensor, Tensor]:
    clone = None if draw.clone is None else dataset.codes(draw.clone)
    row = builder.build([dataset.example(position) for position in item.positions], draw, clone)
    return row.inputs, row.labels


VOICE = tiny_coded("ref-0", "", 6, split="reference")
CASES: dict[str, tuple[Member, dict[str, Any]]] = {
    "plain": (Member.tts, {}),
    "one reference": (Member.tts, {"reference_ids": ["ref-0"]}),
    "every field": (
        Member.tts,
        {"instruction": "calmly", "tokens": 25, "quality": "high", "sound_event": "bell", "ambient_sound": "rain"},
    ),
    "dialogue": (Member.ttsd, {"text": "[S1] one [S2] two", "reference_ids": ["ref-0", "ref-1"]}),
    "dialogue without voices": (Member.ttsd, {"text": "[S1] one [S2] two"}),
    "voice in words": (Member.voice_generator, {"instruction": "An old man."}),
    "sound": (Member.sound_effect, {"text": "", "ambient_sound": "Rain on a roof."}),
}


@pytest.mark.parametrize("architecture", ["delay", "local", "local_v15"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stated", [False, True])
def test_lengths_and_targets_are_known_from_the_index(
    tmp_path: Path, architecture: str, case: str, stated: bool
) -> None:
    member, fields = CASES[case]
    dataset = shards(tmp_path, tiny_coded("a", **fields), VOICE, tiny_coded("ref-1", "", 3, split="reference"))
    builder = builder_of(architecture, member)
    (item,) = find_items([dataset], "train", member)
    inputs, labels = build(builder, dataset, item, Draw(stated))
    for path in tmp_path.glob("*.tar"):
        path.unlink()
    fresh = ShardDataset.__new__(ShardDataset)
    fresh.__dict__ |= dataset.__getstate__()
    assert builder.num_positions(fresh, item, stated) == len(inputs) == len(labels)
    counts = (labels != IGNORE_LABEL).sum(0)
    assert torch.equal(builder.layout.target_counts(builder.answers(fresh, item)), counts)


def prompt_of(folder: Path, member: Member = Member.tts, architecture: str = "delay", **fields: Any) -> UserPrompt:
    dataset = shards(folder, tiny_coded("a", **fields), VOICE)
    prompt, codes = builder_of(architecture, member).request([dataset.example(0)])
    assert isinstance(prompt, UserPrompt)
    assert torch.equal(codes, torch.from_numpy(dataset.example(0).codes.astype("int64")))
    return prompt


def test_extra_fields_stand_in_the_prompt(tmp_path: Path) -> None:
    fields = CASES["every field"][1]
    prompt = prompt_of(tmp_path, **fields, language="fr", custom=[1])
    assert {name: getattr(prompt, name) for name in fields} == fields
    assert (prompt.language, prompt.text, prompt.reference, prompt.scene) == ("French", "one two", None, None)


def test_references_keep_their_speakers(tmp_path: Path) -> None:
    prompt = prompt_of(tmp_path, Member.ttsd, text="[S1] one [S2] two", reference_ids=["ref-0", "ref-0"])
    assert prompt.reference is not None
    assert [torch.equal(clip, torch.from_numpy(VOICE.codes.astype("int64"))) for clip in prompt.reference] == [True] * 2  # type: ignore[arg-type, union-attr]
    other = prompt_of(tmp_path / "b", reference_ids=[None, "ref-0"])
    assert other.reference is not None
    assert [clip is None for clip in other.reference] == [True, False]


def test_a_scene_needs_a_format_with_a_place_for_it(tmp_path: Path) -> None:
    dataset = shards(tmp_path, tiny_coded("a", "[S1] one [S2] two", scene="A kitchen."))
    example = dataset.example(0)
    prompt, _ = builder_of("delay", Member.ttsd, template=Template.moss_ttsd_v1).request([example])
    assert isinstance(prompt, UserPrompt)
    assert prompt.scene == "A kitchen."
    with pytest.raises(DataError, match=r"utterance a: scene: the prompt format moss_tts_delay_v1 has no place for it"):
        builder_of("delay", Member.ttsd).build([example])


def test_a_stated_length_wins_over_chance(tmp_path: Path) -> None:
    dataset = shards(tmp_path, tiny_coded("a", tokens=25), tiny_coded("b"))
    builder = builder_of()
    stated = [build(builder, dataset, Item(0, (0,)), Draw(state)) for state in (False, True)]
    assert torch.equal(stated[0][0], stated[1][0])
    drawn = [build(builder, dataset, Item(0, (1,)), Draw(state)) for state in (False, True)]
    assert not torch.equal(drawn[0][0], drawn[1][0])


@pytest.mark.parametrize(
    ("member", "fields", "message"),
    [
        (Member.tts, {"instruction": ["x"]}, r"instruction is \['x'\], expected a text"),
        (Member.tts, {"tokens": "25"}, r"tokens is '25', expected a number of frames"),
        (Member.tts, {"language": "Klingon"}, r"language 'Klingon' is unknown"),
        (Member.tts, {"text": "", "ambient_sound": "rain"}, r"text: member=tts needs it"),
        (Member.sound_effect, {"ambient_sound": "rain"}, r"text: member=sound_effect takes none"),
        (Member.sound_effect, {"text": ""}, r"ambient_sound: member=sound_effect needs it"),
        (Member.voice_generator, {}, r"instruction: member=voice_generator needs it"),
    ],
)
def test_what_makes_no_prompt_names_the_utterance(
    tmp_path: Path, member: Member, fields: dict[str, Any], message: str
) -> None:
    dataset = shards(tmp_path, tiny_coded("a", **fields))
    builder = builder_of("delay", member)
    with pytest.raises(DataError, match=rf"{tmp_path}: utterance a: {message}"):
        builder.num_positions(dataset, Item(0, (0,)))
    with pytest.raises(DataError, match=rf"^utterance a: {message}"):
        builder.build([dataset.example(0)])


def test_an_unknown_reference_is_found_before_training(tmp_path: Path) -> None:
    dataset = shards(tmp_path, tiny_coded("a", reference_ids=["gone"]))
    with pytest.raises(DataError, match=r"shard-000000\.tar:a: reference 'gone' is no utterance of"):
        builder_of().num_positions(dataset, Item(0, (0,)))


@pytest.mark.parametrize("architecture", ["delay", "local", "local_v15"])
def test_a_clone_is_the_reference(tmp_path: Path, architecture: str) -> None:
    dataset = shards(tmp_path, tiny_coded("a"), tiny_coded("b", frames=7), tiny_coded("c", reference_ids=["b"]))
    builder = builder_of(architecture)
    cloned = build(builder, dataset, Item(0, (0,)), Draw(clone=1))
    assert builder.num_positions(dataset, Item(0, (0,)), clone_frames=7) == len(cloned[0])
    # The same text with the same clip as a reference of its own.
    renamed = dataclasses.replace(dataset.example(2), id="a", codes=dataset.codes(0))
    assert torch.equal(builder.build([renamed]).inputs, cloned[0])
    # An example's own reference stays.
    own = build(builder, dataset, Item(0, (2,)))
    assert torch.equal(build(builder, dataset, Item(0, (2,)), Draw(clone=0))[0], own[0])


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("kept", [1, 3])
def test_dropped_codebooks_are_padding_without_loss(tmp_path: Path, architecture: str, kept: int) -> None:
    dataset = shards(tmp_path, tiny_coded("a", reference_ids=["ref-0"]), VOICE)
    builder = builder_of(architecture)
    item = Item(0, (0,))
    whole, dropped = build(builder, dataset, item), build(builder, dataset, item, Draw(kept=kept))
    assert torch.equal(whole[0][:, : 1 + kept], dropped[0][:, : 1 + kept])
    assert torch.equal(whole[1][:, : 1 + kept], dropped[1][:, : 1 + kept])
    assert (dropped[0][:, 1 + kept :] == builder.layout.pad_code).all()
    assert (dropped[1][:, 1 + kept :] == IGNORE_LABEL).all()
    counts = builder.layout.target_counts(builder.answers(dataset, item), [kept])
    assert torch.equal((dropped[1] != IGNORE_LABEL).sum(0), counts)


def talk(name: str, *turns: str, first: int = 0, **extra: Any) -> list[Any]:
    return [
        tiny_coded(
            f"{name}-{role}{number}", f"{role} {number}", 3 + number, conversation=name, turn=number, role=role, **extra
        )
        for number, role in enumerate(turns, first)
    ]


def ids(dataset: ShardDataset, items: list[Item]) -> list[list[str]]:
    return [[dataset.entries[position].id for position in item.positions] for item in items]


def test_conversations_are_gathered_in_their_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = talk("x", "user", "assistant", "user", "assistant"), talk("y", "assistant", "user", first=4)
    third = talk("z", "user", "user")
    lone = tiny_coded("lone", "all alone")
    held = tiny_coded("x-held", conversation="x", turn=9, split="heldout")
    dataset = shards(tmp_path, first[3], second[1], lone, *first[:3], held, second[0], *third)
    with caplog.at_level(logging.WARNING):
        items = find_items([dataset, dataset], "train", Member.realtime)
    names = [["x-user0", "x-assistant1", "x-user2", "x-assistant3"], ["y-assistant4"], ["lone"]]
    assert ids(dataset, items[:3]) == names
    assert [item.dataset for item in items] == [0, 0, 0, 1, 1, 1]
    assert caplog.messages == [f"{tmp_path}: left out 1 conversations in which the assistant says nothing"] * 2
    assert len(find_items([dataset], "train", Member.tts)) == len(dataset) - 1


@pytest.mark.parametrize("reference", [{}, {"reference_ids": [None, "ref-0"]}])
def test_a_conversation_is_one_example(tmp_path: Path, reference: dict[str, Any]) -> None:
    dataset = shards(tmp_path, *talk("x", "user", "assistant", "user", "assistant", "user", **reference), VOICE)
    (item,) = find_items([dataset], "train", Member.realtime)
    builder = builder_of("realtime")
    assert builder.answers(dataset, item) == [4, 6]
    inputs, labels = build(builder, dataset, item)
    assert builder.num_positions(dataset, item) == len(inputs)
    assert torch.equal(builder.layout.target_counts([4, 6]), (labels != IGNORE_LABEL).sum(0))
    spoken = torch.cat([torch.from_numpy(dataset.codes(p).astype("int64")) for p in item.positions[1::2]])
    full = labels[(labels[:, 1:] != IGNORE_LABEL).all(1), 1:]
    assert torch.equal(full, spoken)
    prompt, codes = builder.request([dataset.example(position) for position in item.positions])
    assert isinstance(prompt, Conversation)
    assert [(turn.role, turn.text, turn.codes is None) for turn in prompt.turns] == [
        ("user", "user 0", False), ("assistant", "assistant 1", False),
        ("user", "user 2", False), ("assistant", "assistant 3", True),
    ]  # fmt: skip
    assert torch.equal(codes, spoken[4:])
    assert (prompt.reference is not None) == bool(reference)
    cloned = build(builder, dataset, item, Draw(clone=5))
    longer = 0 if reference else builder.num_positions(dataset, item, clone_frames=6) - len(inputs)
    assert len(cloned[0]) - len(inputs) == longer
    assert bool(reference) != (longer > 6)


def test_turns_that_make_no_conversation(tmp_path: Path) -> None:
    for number, (coded, message) in enumerate(
        [
            ([tiny_coded("a", conversation="x"), tiny_coded("b", conversation="x", turn=1)],
             r"utterance a: turn is None, expected the number of its place"),
            ([tiny_coded("a", conversation="x", turn=1), tiny_coded("b", conversation="x", turn=1)],
             r"utterances a and b are both turn 1 of one conversation; number them"),
            ([tiny_coded("a", role="narrator")], r"utterance a: role is 'narrator', expected user or assistant"),
        ]
    ):  # fmt: skip
        dataset = shards(tmp_path / str(number), *coded)
        with pytest.raises(DataError, match=message):
            find_items([dataset], "train", Member.realtime)
