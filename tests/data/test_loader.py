"""Packed rows from shards: the same whoever loads them, and from any step on."""

import dataclasses
import logging
from collections import Counter
from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader

from moss.config.model import TextTokenizerConfig, TextTokenizerKind
from moss.config.train import DataConfig, Overlong
from moss.data.batch import TokenBatch
from moss.data.loader import ExampleBuilder, TokenStream, validation_batches
from moss.data.shard import ShardDataset, open_datasets
from moss.data.text_tokenizer import build_text_tokenizer
from moss.errors import DataError
from moss.sequence.layout import DelayLayout
from moss.spec import IGNORE_LABEL
from tests.tiny import tiny_shards

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
def test_planned_length_bounds_the_built_one(datasets: list[ShardDataset], stated: bool) -> None:
    made = builder()
    for index, entry in enumerate(datasets[0].entries):
        length = made.num_positions(entry.text, entry.language, entry.frames, stated)
        assert len(made.build(datasets[0].example(index), stated).inputs) in (length - 1, length)


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
    row = builder(2).build(datasets[0].example(0), state_duration=False)
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


def test_prompts_spell_languages_out() -> None:
    assert ExampleBuilder.prompt("a", "fr").language == "French"
    assert ExampleBuilder.prompt("a", "Klingon").language == "Klingon"
    assert ExampleBuilder.prompt("a").language is None
