"""Score generations or a tokenizer: `python evaluate.py generations=<folder> output=<folder>`; `--help` lists more."""

import sys

from moss.config.compose import run_command
from moss.config.evaluation import EvalConfig


def main() -> int:
    """Compose the configuration and score."""

    def run(config: EvalConfig) -> None:
        # Recognisers and metrics take seconds to import: a wrong configuration must be told at once.
        from moss.evaluation.run import main as evaluate

        evaluate(config)

    return run_command(EvalConfig, "evaluate", run)


if __name__ == "__main__":
    sys.exit(main())
