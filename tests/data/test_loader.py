"""Packed rows from shards: the same whoever loads them, and from any step on."""

import dataclasses
import hashlib
import json
import logging
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from moss.config.model import TextTokenizerConfig, TextTokenizerKind
from moss.config.train import DataConfig, MixtureEntry, Overlong
from moss.data.batch import TokenBatch
from moss.data.examples import Draw, Item
from moss.data.loader import ExampleBuilder, TokenStream, validation_batches
from moss.data.shard import ShardDataset, open_datasets
from moss.data.shard_writer import write_shards
from moss.data.text_tokenizer import build_text_tokenizer
from moss.errors import DataError
from moss.sequence.layout import DelayLayout
from moss.spec import IGNORE_LABEL
from tests.data.test_examples import ARCHITECTURES, builder_of
from tests.tiny import CARD, tiny_coded, tiny_shards

NUM_TRAIN = 23
"""A prime number of training utterances; 5 more are held out."""


def builder(num_codebooks: int = 4, codebook_size: int = 1024) -> ExampleBuilder:
    bpe = build_text_tokenizer(TextTokenizerConfig(kind=TextTokenizerKind.compact))
    layout = DelayLayout(
        encode=bpe.encode, special=bpe.special_tokens, num_codebooks=num_codebooks, codebook_size=codebook_size
    )
    return ExampleBuilder(layout)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[ShardDataset]:
    folder = tmp_path_factory.mktemp("shards")
    made = open_datasets([tiny_shards(folder / "a", 17), tiny_shards(folder / "b", 11, seed=1)])
    assert sum(entry.split == "train" for dataset in made for entry in dataset.entries) == NUM_TRAIN
    return made


CONFIG = DataConfig(positions_per_micro_batch=100, micro_batches_per_step=2, packing_window=4, duration_frac=0.5)


def stream(datasets: list[ShardDataset], config: DataConfig = CONFIG, **more: int) -> TokenStream:
    return TokenStream(datasets, builder(), config, seed=more.pop("seed", 0), **more)


def take(loaded: TokenStream, rows: int, workers: int = 0) -> list[TokenBatch]:
    return list(islice(DataLoader(loaded, batch_size=None, num_workers=workers), rows))


def same(mine: list[TokenBatch], theirs: list[TokenBatch]) -> bool:
    def key(batch: TokenBatch) -> list[object]:
        values = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
        return [value.tolist() if isinstance(value, torch.Tensor) else value for value in values]

    return [key(batch) for batch in mine] == [key(batch) for batch in theirs]


def test_every_utterance_once_an_epoch(datasets: list[ShardDataset]) -> None:
    rows = take(stream(datasets), 40)
    # The two folders have utterances of the same names; each is there once.
    names = [name for row in rows for name in row.utterance_ids]
    expected = Counter(entry.id for dataset in datasets for entry in dataset.entries if entry.split == "train")
    assert Counter(names[:NUM_TRAIN]) == expected
    assert all(row.num_positions <= 100 for row in rows)
    assert max(len(row.document_lengths) for row in rows) > 1


def test_rows_say_what_they_hold(datasets: list[ShardDataset]) -> None:
    for index, row in enumerate(take(stream(datasets), 6)):
        assert row.tokens.shape == row.labels.shape == (1, sum(row.document_lengths), 5)
        assert len(row.utterance_ids) == len(row.document_lengths)
        assert row.step == index // 2
        assert row.cursor == (index + 1) // 2
    pairs = take(stream(datasets), 12)
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        counted = sum((row.labels != IGNORE_LABEL).sum(dim=(0, 1)) for row in (first, second))
        assert torch.equal(first.step_counts, counted)
        assert torch.equal(second.step_counts, counted)


def test_a_batch_moves_with_its_tensors(datasets: list[ShardDataset]) -> None:
    moved = stream(datasets).batch(0, 0).to(torch.device("meta"))
    assert {moved.tokens.device.type, moved.labels.device.type, moved.step_counts.device.type} == {"meta"}


def test_ranks_share_the_rows_of_one_process(datasets: list[ShardDataset]) -> None:
    alone = take(stream(datasets), 30)
    ranks = [take(stream(datasets, rank=rank, world_size=2), 15) for rank in range(2)]
    together = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    assert [batch.utterance_ids for batch in together] == [batch.utterance_ids for batch in alone]
    assert all(torch.equal(mine.tokens, theirs.tokens) for mine, theirs in zip(together, alone, strict=True))
    # With two ranks each row ends the step of its rank.
    assert [batch.cursor for batch in ranks[1]] == list(range(1, 16))


def test_workers_do_not_change_the_order(datasets: list[ShardDataset]) -> None:
    alone = take(stream(datasets, start_step=3), 9)
    assert same(take(stream(datasets, start_step=3), 9, workers=2), alone)


@pytest.mark.parametrize("step", [1, 7, 13])
def test_starting_at_a_step_equals_skipping_to_it(datasets: list[ShardDataset], step: int) -> None:
    assert same(take(stream(datasets, start_step=step), 4), take(stream(datasets), 2 * step + 4)[2 * step :])


def test_another_seed_is_another_order_and_other_durations(datasets: list[ShardDataset]) -> None:
    mine, theirs = take(stream(datasets), 9), take(stream(datasets, seed=1), 9)
    assert [row.utterance_ids for row in mine] != [row.utterance_ids for row in theirs]


def test_duration_is_stated_for_some_and_anew_each_epoch(datasets: list[ShardDataset]) -> None:
    alone = dataclasses.replace(CONFIG, positions_per_micro_batch=60, packing_window=1, duration_frac=0.5)
    lengths: dict[str, set[int]] = {}
    for row in take(stream(datasets[:1], alone), 200):
        for name, length in zip(row.utterance_ids, row.document_lengths, strict=True):
            lengths.setdefault(name, set()).add(length)
    assert all(len(seen) == 2 for seen in lengths.values())


@pytest.mark.parametrize("stated", [False, True])
def test_planned_length_is_the_built_one(datasets: list[ShardDataset], stated: bool) -> None:
    made = builder()
    for index in range(len(datasets[0])):
        length = made.num_positions(datasets[0], Item(0, (index,)), stated)
        assert len(made.build([datasets[0].example(index)], Draw(stated)).inputs) == length


@pytest.mark.parametrize(
    ("positions", "max_positions", "setting"),
    [(34, None, r"data\.positions_per_micro_batch=34"), (100, 34, r"model\.max_positions=34")],
)
def test_an_overlong_example_is_named(
    datasets: list[ShardDataset], positions: int, max_positions: int | None, setting: str
) -> None:
    config = dataclasses.replace(CONFIG, positions_per_micro_batch=positions)
    message = rf"{setting} is shorter than utterance u\d+ \(\d+ positions\) in {datasets[0].folder}; raise it or set"
    with pytest.raises(DataError, match=message):
        TokenStream(datasets, builder(), config, seed=0, max_positions=max_positions)
    with pytest.raises(DataError, match=message):
        validation_batches(datasets, builder(), config, 10, max_positions)


def test_overlong_examples_are_dropped_up_to_a_share(
    datasets: list[ShardDataset], caplog: pytest.LogCaptureFixture
) -> None:
    config = dataclasses.replace(CONFIG, positions_per_micro_batch=38, overlong=Overlong.drop, max_dropped_frac=0.9)
    with caplog.at_level(logging.WARNING):
        kept = stream(datasets, config)
        heldout = validation_batches(datasets, builder(), config, 10)
    assert 0 < kept.num_examples < NUM_TRAIN
    dropped = NUM_TRAIN - kept.num_examples
    assert caplog.messages[0] == f"dropped {dropped} of {NUM_TRAIN} examples longer than 38 positions"
    assert sum(len(batch.utterance_ids) for batch in heldout) < 5
    names = {name for row in take(kept, 60) for name in row.utterance_ids}
    assert len(names) <= kept.num_examples
    strict = dataclasses.replace(config, max_dropped_frac=0.01)
    message = rf"{dropped} of {NUM_TRAIN} examples are longer than data\.positions_per_micro_batch=38, more than "
    with pytest.raises(DataError, match=message + r"data\.max_dropped_frac=0\.01; raise one of them"):
        stream(datasets, strict)


def test_rows_that_cannot_be_shared(datasets: list[ShardDataset]) -> None:
    with pytest.raises(DataError, match=r"data\.micro_batches_per_step=2 cannot be shared by 3 processes"):
        stream(datasets, world_size=3)


@pytest.mark.parametrize(("num_codebooks", "codebook_size", "wanted"), [(8, 1024, "8 of 1024"), (4, 512, "4 of 512")])
def test_shards_of_another_shape(
    datasets: list[ShardDataset], num_codebooks: int, codebook_size: int, wanted: str
) -> None:
    message = f"{datasets[0].folder}: has 4 codebooks of 1024, the model wants {wanted}; encode again or choose"
    with pytest.raises(DataError, match=message):
        TokenStream(datasets, builder(num_codebooks, codebook_size), CONFIG, seed=0)


def test_more_codebooks_than_the_model_has_are_left_out(datasets: list[ShardDataset]) -> None:
    row = builder(2).build([datasets[0].example(0)])
    codes = datasets[0].example(0).codes
    assert row.labels.shape[1] == 3
    kept = row.labels[:, 1][row.labels[:, 1] != IGNORE_LABEL]
    assert kept.tolist() == codes[:, 0].tolist()


def test_no_training_examples(datasets: list[ShardDataset]) -> None:
    with pytest.raises(DataError, match="no examples to train on"):
        stream(datasets, dataclasses.replace(CONFIG, train_split="nobody"))


def test_validation_is_fixed_and_whole(datasets: list[ShardDataset]) -> None:
    batches = validation_batches(datasets, builder(), CONFIG, 100)
    assert same(batches, validation_batches(datasets, builder(), CONFIG, 100))
    heldout = [entry.id for dataset in datasets for entry in dataset.entries if entry.split == "heldout"]
    assert sorted(name for batch in batches for name in batch.utterance_ids) == sorted(heldout)
    assert all(batch.num_positions <= 100 for batch in batches)
    few = validation_batches(datasets, builder(), CONFIG, 2)
    assert sorted(name for batch in few for name in batch.utterance_ids) == sorted(heldout[:2])


def test_rows_are_those_of_the_first_release(datasets: list[ShardDataset]) -> None:
    """What a run trains on must not change under it: batches, targets, order, draws."""
    digest = hashlib.sha256()
    for x in take(stream(datasets, seed=7), 12):
        parts = [x.tokens.tolist(), x.labels.tolist(), list(x.utterance_ids), x.step, x.cursor, x.step_counts.tolist()]
        digest.update(json.dumps([*parts, list(x.document_lengths)]).encode())
    assert digest.hexdigest()[:16] == "777f9f7d05e2f174"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> list[ShardDataset]:
    """Two folders of all kinds: references, speakers with several clips, conversations."""
    folder = tmp_path_factory.mktemp("family")
    made = []
    for name, count in (("a", 11), ("b", 4)):
        coded = [tiny_coded("ref", "", 5, split="reference")]
        for i in range(count):
            extra: dict[str, object] = {
                "conversation": f"talk{i // 3}",
                "turn": i,
                "role": ("user", "assistant")[i % 2],
            }
            extra |= {"reference_ids": ["ref"]} if i % 4 == 0 else {}
            split = "heldout" if i // 3 == 1 else "train"
            coded.append(tiny_coded(f"{name}{i}", f"one {i}", 3 + i % 3, split=split, speaker=f"s{i % 2}", **extra))
        write_shards(folder / name, coded, CARD)
        made.append(folder / name)
    return open_datasets(made)


def family_stream(datasets: list[ShardDataset], architecture: str, **more: int) -> TokenStream:
    mixture = [MixtureEntry(shards=dataset.folder, weight=w) for dataset, w in zip(datasets, (1.0, 2.0), strict=True)]
    config = DataConfig(
        mixture=mixture,
        positions_per_micro_batch=360 if architecture == "realtime" else 160,
        micro_batches_per_step=2,
        packing_window=4,
        duration_frac=0.5,
        clone_frac=0.5,
        sequence_dropout_prob=0.5,
    )
    return TokenStream(datasets, builder_of(architecture), config, seed=more.pop("seed", 0), **more)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_all_draws_at_once_are_reproducible(family: list[ShardDataset], architecture: str) -> None:
    alone = take(family_stream(family, architecture), 40)
    for first, second in zip(alone[::2], alone[1::2], strict=True):
        counted = sum((row.labels != IGNORE_LABEL).sum(dim=(0, 1)) for row in (first, second))
        assert torch.equal(first.step_counts, counted)
        assert torch.equal(second.step_counts, counted)
    assert [row.row for row in alone] == list(range(40))
    # Resumed in the middle of an epoch, shared by ranks, loaded by workers: the same rows.
    assert same(take(family_stream(family, architecture, start_step=7), 12), alone[14:26])
    ranks = [take(family_stream(family, architecture, rank=rank, world_size=2, start_step=3), 8) for rank in range(2)]
    together = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    for mine, theirs in zip(together, alone[6:22], strict=True):
        assert (mine.utterance_ids, mine.row) == (theirs.utterance_ids, theirs.row)
        assert torch.equal(mine.tokens, theirs.tokens)
        assert torch.equal(mine.labels, theirs.labels)
        assert torch.equal(mine.step_counts, theirs.step_counts)
    if architecture == "local":
        assert same(take(family_stream(family, architecture), 10, workers=2), alone[:10])
    assert not same(take(family_stream(family, architecture, seed=1), 4), alone[:4])


@pytest.mark.parametrize("architecture", ["local", "realtime"])
def test_an_epoch_of_a_mixture_is_shared_by_weight(family: list[ShardDataset], architecture: str) -> None:
    loaded = family_stream(family, architecture)
    total = loaded.num_examples
    assert total == {"local": 8 + 3, "realtime": 3 + 1}[architecture]
    names = [name for row in take(loaded, 80) for name in row.utterance_ids]
    shares = {"a": {"local": 4, "realtime": 1}[architecture]}
    shares["b"] = total - shares["a"]
    for epoch in range(3):
        assert Counter(name[0] for name in names[epoch * total : (epoch + 1) * total]) == shares
    # No example of a folder comes back before all of the folder came.
    size = {"local": 8, "realtime": 3}[architecture]
    epochs = [use for index in range(80) for use in loaded._order.uses(index) if loaded.items[use.example].dataset == 0]
    for own_epoch in range(2):
        assert sorted(use.example for use in epochs if use.epoch == own_epoch) == list(range(size))


def test_a_mixture_of_other_folders(family: list[ShardDataset]) -> None:
    config = DataConfig(mixture=[MixtureEntry(shards=family[0].folder)], positions_per_micro_batch=160)
    with pytest.raises(DataError, match=r"data\.mixture has 1 entries, but 2 folders are open; open those of data\.f"):
        TokenStream(family, builder_of("local"), config, seed=0)
    config = dataclasses.replace(config, train_split="nobody")
    with pytest.raises(DataError, match=r"data\.mixture\[0\] has no examples to train on"):
        TokenStream(family[:1], builder_of("local"), config, seed=0)


def test_an_example_that_just_fits_is_admitted(datasets: list[ShardDataset]) -> None:
    made = builder()
    lengths = [
        made.num_positions(datasets[item.dataset], item)
        for item in stream(datasets, dataclasses.replace(CONFIG, duration_frac=0.0)).items
    ]
    exact = dataclasses.replace(CONFIG, positions_per_micro_batch=max(lengths), duration_frac=0.0)
    assert max(row.num_positions for row in take(stream(datasets, exact), 60)) == max(lengths)
    short = dataclasses.replace(exact, positions_per_micro_batch=max(lengths) - 1)
    with pytest.raises(
        DataError, match=rf"={max(lengths) - 1} is shorter than utterance .* \({max(lengths)} positions\)"
    ):
        stream(datasets, short)


def test_a_long_reference_counts_towards_the_limit(tmp_path: Path) -> None:
    write_shards(tmp_path, [tiny_coded("a", speaker="x"), tiny_coded("b", frames=60, speaker="x")], CARD)
    made = open_datasets([tmp_path])
    alone = builder_of("local").num_positions(made[0], Item(0, (1,)))
    config = DataConfig(positions_per_micro_batch=alone)
    assert TokenStream(made, builder_of("local"), config, seed=0).num_examples == 2
    with pytest.raises(DataError, match=rf"micro_batch={alone} is shorter than utterance a \(\d+ positions\)"):
        TokenStream(made, builder_of("local"), dataclasses.replace(config, clone_frac=0.5), seed=0)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_validation_of_every_architecture(family: list[ShardDataset], architecture: str) -> None:
    config = DataConfig(positions_per_micro_batch=400, clone_frac=1.0, sequence_dropout_prob=1.0, duration_frac=1.0)
    batches = validation_batches(family, builder_of(architecture), config, 10)
    assert same(batches, validation_batches(family, builder_of(architecture), config, 10))
    heldout = ["a3", "b3"] if architecture == "realtime" else ["a3", "a4", "a5", "b3"]
    assert sorted(name for batch in batches for name in batch.utterance_ids) == heldout
    for batch in batches:
        assert torch.equal(batch.step_counts, (batch.labels != IGNORE_LABEL).sum(dim=(0, 1)))
