"""The LightningDataModule of generators: shards in, packed rows out, from the step that the run has reached."""

import hashlib
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from moss.config.train import TrainConfig
from moss.data.batch import TokenBatch
from moss.data.loader import ExampleBuilder, TokenStream, validation_batches
from moss.data.shard import ShardDataset
from moss.errors import CheckpointError
from moss.training.lit_lm import LitGenerator


class TokenData(LightningDataModule):
    """Training rows from the module's cursor on, and a fixed validation set.

    Args:
        datasets: Shard folders.
        builder: Lays examples out.
        config: The run.
    """

    def __init__(self, datasets: list[ShardDataset], builder: ExampleBuilder, config: TrainConfig) -> None:
        super().__init__()
        self._datasets, self._builder, self._config = datasets, builder, config
        self.stream = TokenStream(datasets, builder, config.data, config.seed, max_positions=config.model.max_positions)

    @property
    def fingerprint(self) -> str:
        """Of everything that decides the order of training."""
        return order_fingerprint(self._datasets)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must find unchanged."""
        return {"fingerprint": self.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse other data under a run.

        Raises:
            CheckpointError: The shards are not those of the checkpoint.
        """
        if state_dict["fingerprint"] != self.fingerprint:
            raise CheckpointError(
                f"the shards have changed since the checkpoint (fingerprint {state_dict['fingerprint']} then, "
                f"{self.fingerprint} now); restore them, or start another run with another name"
            )

    def train_dataloader(self) -> DataLoader[TokenBatch]:
        """Rows from the next untrained step on."""
        module = self.trainer.lightning_module if self.trainer is not None else None
        assert isinstance(module, LitGenerator)
        assert self.trainer is not None
        stream = TokenStream(
            self._datasets,
            self._builder,
            self._config.data,
            self._config.seed,
            start_step=module.cursor,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            max_positions=self._config.model.max_positions,
        )
        workers = self._config.data.num_workers
        return DataLoader(stream, batch_size=None, num_workers=workers, persistent_workers=workers > 0)

    def val_dataloader(self) -> DataLoader[TokenBatch]:
        """The first examples of the validation split, packed in their order."""
        batches = validation_batches(
            self._datasets,
            self._builder,
            self._config.data,
            self._config.schedule.max_validation_examples,
            self._config.model.max_positions,
        )
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def order_fingerprint(datasets: Sequence[ShardDataset]) -> str:
    """Fingerprints of the data, and of the order in which the indexes list it, which the order of training follows."""
    listed = hashlib.sha256("\n".join(entry.id for dataset in datasets for entry in dataset.entries).encode())
    return "+".join(dataset.fingerprint for dataset in datasets) + f"/{listed.hexdigest()[:8]}"
