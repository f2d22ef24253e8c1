"""What chance makes of an example: a pure function of (seed, epoch, id), whoever computes it and whenever."""

from collections import defaultdict
from collections.abc import Sequence

from moss.config.model import Member
from moss.config.train import DataConfig
from moss.data.examples import Draw, ExampleBuilder, Item, role_of
from moss.data.order import keyed_generator
from moss.data.shard import ShardDataset
from moss.errors import DataError

_CLONING = (Member.tts, Member.realtime)
"""Members that speak with the voice of one reference."""


class Chance:
    """Draws for the examples of a run.

    Args:
        datasets: Shard folders.
        items: All examples of the training split.
        builder: Lays them out.
        config: Probabilities.
        seed: Of the run.

    Raises:
        DataError: `clone_frac` for a member that takes no single reference.
    """

    def __init__(
        self,
        datasets: Sequence[ShardDataset],
        items: Sequence[Item],
        builder: ExampleBuilder,
        config: DataConfig,
        seed: int,
    ) -> None:
        if config.clone_frac > 0 and builder.member not in _CLONING:
            raise DataError(
                f"data.clone_frac={config.clone_frac}: member={builder.member.value} takes no single voice as "
                f"reference; set it to 0, or train {' or '.join(_CLONING)}"
            )
        self._datasets, self._config, self._seed = datasets, config, seed
        self._num_codebooks = builder.layout.num_codebooks
        self._clips: dict[tuple[int, str], list[int]] = defaultdict(list)
        if config.clone_frac > 0:
            self._collect_clips(items)

    def draw(self, item: Item, epoch: int) -> Draw:
        """What becomes of an example the `epoch`-th time."""
        name = self._datasets[item.dataset].entries[item.positions[0]].id
        state_duration = keyed_generator("duration", self._seed, epoch, name).random() < self._config.duration_frac
        return Draw(bool(state_duration), self._clone(item, epoch, name), self.kept(item, epoch))

    def kept(self, item: Item, epoch: int) -> int | None:
        """How many codebooks of an example stay the `epoch`-th time; None for all.

        Source: MOSS-TTS moss_tts_local/README.md, progressive sequence dropout @58b20a0 (the idea; the published
        trainer does not have it).
        """
        if not self._config.sequence_dropout_prob or self._num_codebooks < 2:
            return None
        name = self._datasets[item.dataset].entries[item.positions[0]].id
        random = keyed_generator("codebooks", self._seed, epoch, name)
        if random.random() >= self._config.sequence_dropout_prob:
            return None
        return int(random.integers(1, self._num_codebooks))

    def clone_frames(self, item: Item) -> list[int | None]:
        """Lengths of the reference that an example may get: the longest, and None unless it always gets one."""
        longest = next((p for p in self._pool(item) if p not in item.positions), None)
        if longest is None:
            return [None]
        frames: list[int | None] = [self._datasets[item.dataset].entries[longest].frames]
        return frames if self._config.clone_frac >= 1 else [*frames, None]

    def _collect_clips(self, items: Sequence[Item]) -> None:
        """The clips of each speaker, the longest first; what users say in conversations is left alone."""
        for item in items:
            dataset = self._datasets[item.dataset]
            for position in item.positions:
                speaker = dataset.entries[position].speaker
                if speaker and role_of(dataset, position) == "assistant":
                    self._clips[item.dataset, speaker].append(position)
        for (number, _), positions in self._clips.items():
            entries = self._datasets[number].entries
            positions.sort(key=lambda position: (-entries[position].frames, entries[position].id))

    def _pool(self, item: Item) -> list[int]:
        """Clips that an example may get as reference, its own among them; none where it has a reference."""
        dataset = self._datasets[item.dataset]
        if not self._config.clone_frac or any(
            reference is not None for position in item.positions for reference in dataset.references(position)
        ):
            return []
        return self._clips.get((item.dataset, dataset.entries[item.positions[-1]].speaker), [])

    def _clone(self, item: Item, epoch: int, name: str) -> int | None:
        pool = self._pool(item)
        if all(position in item.positions for position in pool):
            return None
        random = keyed_generator("clone", self._seed, epoch, name)
        if random.random() >= self._config.clone_frac:
            return None
        while True:
            chosen = pool[int(random.integers(len(pool)))]
            if chosen not in item.positions:
                return chosen
