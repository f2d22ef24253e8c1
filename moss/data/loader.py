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
from moss.data.order import PackedOrder, keyed_generator
from moss.data.shard import Example, ShardDataset
from moss.errors import DataError
from moss.sequence.labels import next_position_labels, target_counts
from moss.sequence.layout import DelayLayout
from moss.sequence.normalize import normalize_tts_text
from moss.sequence.packing import pack
from moss.sequence.prompt import PromptMode, UserPrompt

logger = logging.getLogger(__name__)

LANGUAGE_NAMES = {"en": "English", "fr": "French", "it": "Italian", "es": "Spanish", "ru": "Russian", "zh": "Chinese"}
"""Language tags of manifests as the prompt spells them; an unknown tag is passed on as it is."""


@dataclass(frozen=True, slots=True)
class Row:
    """One example laid out: inputs and labels (positions, channels)."""

    inputs: Tensor
    labels: Tensor


class ExampleBuilder:
    """Turns an utterance into a training example; generation and evaluation build their prompts with `prompt` too."""

    def __init__(self, layout: DelayLayout) -> None:
        """Build for one model's layout."""
        self.layout = layout

    @staticmethod
    def prompt(
        text: str | None, language: str = "", tokens: int | None = None, reference: Tensor | None = None, **fields: str
    ) -> UserPrompt:
        """The user turn of a request or an example; the text is normalised as the published processor does."""
        return UserPrompt(
            text=None if text is None else normalize_tts_text(text),
            language=LANGUAGE_NAMES.get(language, language) or None,
            tokens=tokens,
            reference=None if reference is None else [reference],
            **fields,
        )

    def build(self, example: Example, state_duration: bool) -> Row:
        """Lay an utterance out; the first `num_codebooks` of its codes are used."""
        codes = torch.from_numpy(example.codes[:, : self.layout.num_codebooks].astype("int64"))
        prompt = self.prompt(example.text, example.language, len(codes) if state_duration else None)
        rows = self.layout.conversation(prompt, [codes], PromptMode.loss)
        num_prompt = len(self.layout.conversation(prompt))
        inputs, labels = next_position_labels(rows, num_prompt, self.layout.pad_code)
        return Row(inputs, labels)

    def num_positions(self, text: str, language: str, frames: int, with_duration: bool) -> int:
        """Positions of an example without reading its codes."""
        prompt = self.prompt(text, language, frames if with_duration else None)
        # Start token, slots, end token, end of turn and newline follow the prompt; the last row is no input.
        return len(self.layout.conversation(prompt)) + frames + self.layout.num_codebooks + 3


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
        DataError: The shards have fewer codebooks than the model, an example is too long, or rows cannot be shared.
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
        self._entries = split_entries(datasets, config.train_split)
        self._limit = PositionLimit.of(config, max_positions)
        lengths = self._lengths()
        fingerprint = "+".join(dataset.fingerprint for dataset in datasets)
        self._order = PackedOrder(lengths, config.positions_per_micro_batch, config.packing_window, seed, fingerprint)

    @property
    def num_examples(self) -> int:
        """Examples of one epoch."""
        return len(self._entries)

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
        rows = [self._order.row(step * per_step + i)[1] for i in range(per_step)]
        frames = torch.tensor([self._frames(index) for row in rows for index in row])
        epoch, chosen = self._order.row(mine)
        built = [self._build(index, epoch) for index in chosen]
        is_last = micro_batch == per_step // self._world_size - 1
        return TokenBatch(
            tokens=torch.cat([row.inputs for row in built]).unsqueeze(0),
            labels=torch.cat([row.labels for row in built]).unsqueeze(0),
            document_lengths=[len(row.inputs) for row in built],
            utterance_ids=[self._datasets[d].entries[i].id for d, i in (self._entries[index] for index in chosen)],
            step=step,
            cursor=step + 1 if is_last else step,
            step_counts=target_counts(frames, self._builder.layout.num_codebooks),
        )

    def _frames(self, index: int) -> int:
        dataset, position = self._entries[index]
        return self._datasets[dataset].entries[position].frames

    def _build(self, index: int, epoch: int) -> Row:
        dataset, position = self._entries[index]
        example = self._datasets[dataset].example(position)
        draw = keyed_generator("duration", self._seed, epoch, example.id).random()
        return self._builder.build(example, bool(draw < self._config.duration_frac))

    def _lengths(self) -> list[int]:
        """Upper bound of each example's positions; examples that never fit are refused or dropped."""
        frac = self._config.duration_frac
        stated = [False] * (frac < 1) + [True] * (frac > 0)
        kept, lengths = [], []
        for dataset, position in self._entries:
            entry = self._datasets[dataset].entries[position]
            length = max(self._builder.num_positions(entry.text, entry.language, entry.frames, s) for s in stated)
            if self._limit.admits(length, entry.id, self._datasets[dataset].folder):
                kept.append((dataset, position))
                lengths.append(length)
        self._limit.check_dropped(len(self._entries) - len(kept), len(self._entries))
        self._entries = kept
        return lengths


def split_entries(datasets: Sequence[ShardDataset], split: str) -> list[tuple[int, int]]:
    """(dataset, position) of every utterance of a split."""
    return [
        (number, position)
        for number, dataset in enumerate(datasets)
        for position, entry in enumerate(dataset.entries)
        if entry.split == split
    ]


def check_codebooks(datasets: Sequence[ShardDataset], layout: DelayLayout) -> None:
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
    rows = []
    limit = PositionLimit.of(config, max_positions)
    chosen_entries = split_entries(datasets, config.validation_split)[:max_examples]
    for dataset, position in chosen_entries:
        example = datasets[dataset].example(position)
        row = builder.build(example, state_duration=False)
        if limit.admits(len(row.inputs), example.id, datasets[dataset].folder):
            rows.append((example.id, len(example.codes), row))
    limit.check_dropped(len(chosen_entries) - len(rows), len(chosen_entries))
    packed = pack([len(row.inputs) for _, _, row in rows], config.positions_per_micro_batch, len(rows) or 1)
    batches = []
    for chosen in packed:
        frames = torch.tensor([rows[i][1] for i in chosen])
        batches.append(
            TokenBatch(
                tokens=torch.cat([rows[i][2].inputs for i in chosen]).unsqueeze(0),
                labels=torch.cat([rows[i][2].labels for i in chosen]).unsqueeze(0),
                document_lengths=[len(rows[i][2].inputs) for i in chosen],
                utterance_ids=[rows[i][0] for i in chosen],
                step=0,
                cursor=0,
                step_counts=target_counts(frames, builder.layout.num_codebooks),
            )
        )
    return batches
