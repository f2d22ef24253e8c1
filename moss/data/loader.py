"""From shards to packed rows, starting at any step."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from moss.config.train import DataConfig, Overlong
from moss.data.batch import TokenBatch
from moss.data.chance import Chance
from moss.data.examples import ExampleBuilder, Item, Row, find_items
from moss.data.order import MixtureOrder, PackedOrder, Use
from moss.data.shard import Example, ShardDataset
from moss.errors import DataError
from moss.sequence.layout import Layout
from moss.sequence.packing import pack

__all__ = [
    "ExampleBuilder",
    "PositionLimit",
    "Row",
    "TokenStream",
    "check_codebooks",
    "read_item",
    "validation_batches",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PositionLimit:
    """How long an example may be, by which setting, and what happens to a longer one."""

    positions: int
    setting: str
    config: DataConfig

    @classmethod
    def of(cls, config: DataConfig, max_positions: int | None) -> "PositionLimit":
        """The smaller of a row and the model's longest sequence."""
        if max_positions is not None and max_positions < config.positions_per_micro_batch:
            return cls(max_positions, "model.max_positions", config)
        return cls(config.positions_per_micro_batch, "data.positions_per_micro_batch", config)

    def admits(self, length: int, utterance_id: str, folder: Path) -> bool:
        """Whether an example stays.

        Raises:
            DataError: It is too long and `overlong=error`.
        """
        if length <= self.positions:
            return True
        if self.config.overlong is Overlong.error:
            raise DataError(
                f"{self.setting}={self.positions} is shorter than utterance {utterance_id} ({length} positions) in "
                f"{folder}; raise it or set data.overlong=drop"
            )
        return False

    def check_dropped(self, dropped: int, total: int) -> None:
        """Say how many examples were left out.

        Raises:
            DataError: More than `max_dropped_frac`.
        """
        if dropped > self.config.max_dropped_frac * total:
            raise DataError(
                f"{dropped} of {total} examples are longer than {self.setting}={self.positions}, more than "
                f"data.max_dropped_frac={self.config.max_dropped_frac}; raise one of them"
            )
        if dropped:
            logger.warning("dropped %d of %d examples longer than %d positions", dropped, total, self.positions)


class TokenStream(IterableDataset[TokenBatch]):
    """Endless packed rows of one rank.

    Args:
        datasets: Shard folders of one tokenizer.
        builder: Lays examples out.
        config: Budgets and splits.
        seed: Of the run.
        start_step: First optimizer step.
        max_positions: Longest example that the model is meant for, however long a row may be.
        rank: This process among `world_size`.
        world_size: Number of processes that share a step.

    Raises:
        DataError: The shards have fewer codebooks than the model, an example is too long or makes no prompt of the
            member, rows cannot be shared, or the mixture names other folders.
    """

    def __init__(
        self,
        datasets: Sequence[ShardDataset],
        builder: ExampleBuilder,
        config: DataConfig,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        max_positions: int | None = None,
    ) -> None:
        if config.micro_batches_per_step % world_size:
            raise DataError(
                f"data.micro_batches_per_step={config.micro_batches_per_step} cannot be shared by {world_size} "
                "processes; make it a multiple"
            )
        self._datasets, self._builder, self._config, self._seed = list(datasets), builder, config, seed
        self.start_step, self._rank, self._world_size = start_step, rank, world_size
        check_codebooks(datasets, builder.layout)
        items = find_items(datasets, config.train_split, builder.member)
        self._chance = Chance(self._datasets, items, builder, config, seed)
        self._limit = PositionLimit.of(config, max_positions)
        self._items, lengths = self._fitting(items)
        self._order = self._make_order(lengths)

    @property
    def num_examples(self) -> int:
        """Examples of all folders; an epoch has as many."""
        return len(self._items)

    @property
    def items(self) -> Sequence[Item]:
        """The examples, in the order of the folders; `read_item` reads one."""
        return self._items

    def __iter__(self) -> Iterator[TokenBatch]:
        """Rows of this rank from `start_step` on; workers take turns, so the order does not depend on their number."""
        worker = get_worker_info()
        offset, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        per_rank = self._config.micro_batches_per_step // self._world_size
        position = self.start_step * per_rank + offset
        while True:
            yield self.batch(position // per_rank, position % per_rank)
            position += stride

    def batch(self, step: int, micro_batch: int) -> TokenBatch:
        """Row `micro_batch` of this rank in a step."""
        per_step = self._config.micro_batches_per_step
        mine = step * per_step + micro_batch * self._world_size + self._rank
        in_step = [use for i in range(per_step) for use in self._order.uses(step * per_step + i)]
        answers, kept = self._answers(in_step)
        uses = self._order.uses(mine)
        items = [self._items[use.example] for use in uses]
        is_last = micro_batch == per_step // self._world_size - 1
        return _batch(
            [self._build(item, use.epoch) for item, use in zip(items, uses, strict=True)],
            [_item_id(self._datasets, item) for item in items],
            step_counts=self._builder.layout.target_counts(answers, kept),
            step=step,
            cursor=step + 1 if is_last else step,
            row=mine,
        )

    def _answers(self, uses: Sequence[Use]) -> tuple[list[int], list[int] | None]:
        """Frames of every clip to be learnt, and how many codebooks of each stay where any are dropped."""
        frames: list[int] = []
        kept: list[int] = []
        whole = self._builder.layout.num_codebooks
        for use in uses:
            item = self._items[use.example]
            found = self._builder.answers(self._datasets[item.dataset], item)
            frames += found
            kept += [self._chance.kept(item, use.epoch) or whole] * len(found)
        return frames, kept if self._config.sequence_dropout_prob else None

    def _build(self, item: Item, epoch: int) -> Row:
        draw = self._chance.draw(item, epoch)
        clone = None if draw.clone is None else self._datasets[item.dataset].codes(draw.clone)
        return self._builder.build(read_item(self._datasets, item), draw, clone)

    def _fitting(self, items: Sequence[Item]) -> tuple[list[Item], list[int]]:
        """The examples that fit, and an upper bound of each one's positions; others are refused or dropped."""
        frac = self._config.duration_frac
        stated = [False] * (frac < 1) + [True] * (frac > 0)
        kept, lengths = [], []
        for item in items:
            dataset = self._datasets[item.dataset]
            clones = self._chance.clone_frames(item)
            length = max(self._builder.num_positions(dataset, item, s, c) for s in stated for c in clones)
            if self._limit.admits(length, _item_id(self._datasets, item), dataset.folder):
                kept.append(item)
                lengths.append(length)
        self._limit.check_dropped(len(items) - len(kept), len(items))
        return kept, lengths

    def _make_order(self, lengths: Sequence[int]) -> PackedOrder:
        budget, window = self._config.positions_per_micro_batch, self._config.packing_window
        # One position more than an example has: so rows have always been packed, and a running run must find its own.
        spaced = [min(length + 1, budget) for length in lengths]
        fingerprints = [dataset.fingerprint for dataset in self._datasets]
        mixture = self._config.mixture
        if not mixture:
            return PackedOrder(spaced, budget, window, self._seed, "+".join(fingerprints))
        if len(mixture) != len(fingerprints):
            raise DataError(
                f"data.mixture has {len(mixture)} entries, but {len(fingerprints)} folders are open; open those of "
                "data.folders in their order"
            )
        sizes = [sum(item.dataset == number for item in self._items) for number in range(len(fingerprints))]
        weights = [entry.weight for entry in mixture]
        return MixtureOrder(spaced, budget, window, self._seed, fingerprints, sizes, weights)


def read_item(datasets: Sequence[ShardDataset], item: Item) -> list[Example]:
    """The utterances of an example, read from their shards."""
    return [datasets[item.dataset].example(position) for position in item.positions]


def check_codebooks(datasets: Sequence[ShardDataset], layout: Layout) -> None:
    """Refuse shards that the model cannot be trained on.

    Raises:
        DataError: Too few codebooks, or another codebook size.
    """
    for dataset in datasets:
        card = dataset.tokenizer
        if card.num_codebooks < layout.num_codebooks or card.codebook_size != layout.codebook_size:
            raise DataError(
                f"{dataset.folder}: has {card.num_codebooks} codebooks of {card.codebook_size}, the model wants "
                f"{layout.num_codebooks} of {layout.codebook_size}; encode again or choose another model"
            )


def validation_batches(
    datasets: Sequence[ShardDataset],
    builder: ExampleBuilder,
    config: DataConfig,
    max_examples: int,
    max_positions: int | None = None,
) -> list[TokenBatch]:
    """The first `max_examples` of the validation split as packed rows, the same for every call.

    Raises:
        DataError: An example is too long, or too many are (see `PositionLimit`).
    """
    limit = PositionLimit.of(config, max_positions)
    chosen = find_items(datasets, config.validation_split, builder.member)[:max_examples]
    items, rows = [], []
    for item in chosen:
        row = builder.build(read_item(datasets, item))
        if limit.admits(len(row.inputs), _item_id(datasets, item), datasets[item.dataset].folder):
            items.append(item)
            rows.append(row)
    limit.check_dropped(len(chosen) - len(rows), len(chosen))
    batches: list[TokenBatch] = []
    for packed in pack([len(row.inputs) for row in rows], config.positions_per_micro_batch, len(rows) or 1):
        answers = [frames for i in packed for frames in builder.answers(datasets[items[i].dataset], items[i])]
        ids = [_item_id(datasets, items[i]) for i in packed]
        counts = builder.layout.target_counts(answers)
        batches.append(_batch([rows[i] for i in packed], ids, step_counts=counts, row=len(batches)))
    return batches


def _batch(
    rows: Sequence[Row], ids: Sequence[str], *, step_counts: Tensor, row: int, step: int = 0, cursor: int = 0
) -> TokenBatch:
    """Examples one after the other in one row."""
    return TokenBatch(
        tokens=torch.cat([one.inputs for one in rows]).unsqueeze(0),
        labels=torch.cat([one.labels for one in rows]).unsqueeze(0),
        document_lengths=[len(one.inputs) for one in rows],
        utterance_ids=list(ids),
        step=step,
        cursor=cursor,
        step_counts=step_counts,
        row=row,
    )


def _item_id(datasets: Sequence[ShardDataset], item: Item) -> str:
    """The id of an example: of its first utterance."""
    return datasets[item.dataset].entries[item.positions[0]].id
