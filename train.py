"""Train a generator or an audio tokenizer: `python train.py experiment=quickstart`; `--help` lists the choices."""

import sys

from moss.config.compose import run_command
from moss.config.train import TrainConfig


def main() -> int:
    """Compose the configuration and train."""

    def run(config: TrainConfig) -> None:
        # Lightning takes seconds to import: a wrong configuration must be told at once.
        from moss.training.run import train

        train(config)

    return run_command(TrainConfig, "train", run)


if __name__ == "__main__":
    sys.exit(main())
