"""Draws: how often, from what, and that they depend on seed, epoch and id alone."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from moss.config.model import Member
from moss.config.train import DataConfig
from moss.data.chance import Chance
from moss.data.examples import Item, find_items
from moss.data.shard import ShardDataset
from moss.data.shard_writer import write_shards
from moss.errors import DataError
from tests.data.test_examples import builder_of
from tests.tiny import CARD, tiny_coded


def shards(folder: Path, *coded: Any) -> ShardDataset:
    write_shards(folder, coded, CARD)
    return ShardDataset(folder)


def chance(
    datasets: list[ShardDataset],
    architecture: str = "local",
    member: Member = Member.tts,
    seed: int = 0,
    **fracs: float,
) -> tuple[Chance, list[Item]]:
    builder = builder_of(architecture, member)
    items = find_items(datasets, "train", builder.member)
    return Chance(datasets, items, builder, DataConfig(**fracs), seed), items


@pytest.fixture
def voices(tmp_path: Path) -> ShardDataset:
    """Three clips of one speaker, one of which has a reference, single clips of others, and some of nobody."""
    return shards(
        tmp_path / "voices",
        tiny_coded("a", frames=3, speaker="x"),
        tiny_coded("b", frames=9, speaker="x"),
        tiny_coded("c", frames=5, speaker="x", reference_ids=["ref"]),
        tiny_coded("d", frames=20, speaker="x", split="heldout"),
        tiny_coded("alone", speaker="y"),
        tiny_coded("unknown0", speaker=""),
        tiny_coded("unknown1", speaker=""),
        tiny_coded("ref", "", 30, speaker="x", split="reference"),
    )


def test_a_clone_is_another_training_clip_of_the_speaker(voices: ShardDataset) -> None:
    drawn, items = chance([voices], clone_frac=1.0)
    clones = {
        voices.entries[item.positions[0]].id: Counter(drawn.draw(item, epoch).clone for epoch in range(200))
        for item in items
    }
    # a takes b and c, b takes a and c; c has a reference; the others have nobody to take.
    assert set(clones.pop("a")) == {1, 2}
    assert set(clones.pop("b")) == {0, 2}
    assert all(set(seen) == {None} for seen in clones.values())
    assert set(clones) == {"c", "alone", "unknown0", "unknown1"}


def test_a_clone_comes_from_the_same_folder(voices: ShardDataset, tmp_path: Path) -> None:
    other = shards(tmp_path / "other", tiny_coded("e", speaker="y"), tiny_coded("f", speaker="y"))
    drawn, items = chance([voices, other], clone_frac=1.0)
    by_id = {[voices, other][item.dataset].entries[item.positions[0]].id: item for item in items}
    assert {drawn.draw(by_id["e"], epoch).clone for epoch in range(50)} == {1}
    assert drawn.draw(by_id["alone"], 0).clone is None


def test_the_longest_clone_bounds_the_length(voices: ShardDataset) -> None:
    for frac, expected in ((1.0, [[9], [5], [None]]), (0.5, [[9, None], [5, None], [None]]), (0.0, [[None]] * 3)):
        drawn, items = chance([voices], clone_frac=frac)
        assert [drawn.clone_frames(item) for item in items[:3]] == expected


@pytest.mark.parametrize("name", ["clone_frac", "sequence_dropout_prob", "duration_frac"])
def test_shares_are_kept_and_drawn_anew(voices: ShardDataset, name: str) -> None:
    field = {"clone_frac": "clone", "sequence_dropout_prob": "kept", "duration_frac": "state_duration"}[name]
    drawn, (item, *_) = chance([voices], **{name: 0.3})
    values = [getattr(drawn.draw(item, epoch), field) for epoch in range(2000)]
    assert 0.26 < sum(value not in (None, False) for value in values) / 2000 < 0.34
    again, _ = chance([voices], **{name: 0.3})
    assert [getattr(again.draw(item, epoch), field) for epoch in reversed(range(100))] == values[:100][::-1]
    other, _ = chance([voices], seed=1, **{name: 0.3})
    assert [getattr(other.draw(item, epoch), field) for epoch in range(100)] != values[:100]
    never, _ = chance([voices])
    assert {getattr(never.draw(item, epoch), field) for epoch in range(50)} <= {None, False}


def test_every_number_of_codebooks_but_all_is_kept_alike(voices: ShardDataset) -> None:
    drawn, (item, *_) = chance([voices], sequence_dropout_prob=1.0)
    seen = Counter(drawn.draw(item, epoch).kept for epoch in range(1500))
    assert set(seen) == {1, 2, 3}
    assert all(420 < count < 580 for count in seen.values())
    assert [drawn.kept(item, epoch) for epoch in range(20)] == [drawn.draw(item, epoch).kept for epoch in range(20)]


def test_voices_of_users_are_never_cloned(tmp_path: Path) -> None:
    def turn(name: str, role: str, conversation: str, number: int) -> Any:
        return tiny_coded(name, speaker="x", conversation=conversation, turn=number, role=role)

    first = [turn("a", "user", "k", 0), turn("b", "assistant", "k", 1), turn("c", "assistant", "k", 2)]
    dataset = shards(tmp_path, *first, turn("d", "user", "l", 0), turn("e", "assistant", "l", 1))
    drawn, items = chance([dataset], "realtime", clone_frac=1.0)
    assert {drawn.draw(items[0], epoch).clone for epoch in range(50)} == {4}
    assert {drawn.draw(items[1], epoch).clone for epoch in range(50)} == {1, 2}
    alone, items = chance([shards(tmp_path / "b", turn("a", "user", "k", 0), turn("b", "assistant", "k", 1))],
                          "realtime", clone_frac=1.0)  # fmt: skip
    assert alone.draw(items[0], 0).clone is None


@pytest.mark.parametrize("member", [Member.ttsd, Member.voice_generator, Member.sound_effect])
def test_members_without_one_voice_refuse_clones(voices: ShardDataset, member: Member) -> None:
    with pytest.raises(DataError, match=rf"data\.clone_frac=0\.5: member={member.value} takes no single voice as "):
        chance([voices], member=member, clone_frac=0.5)
