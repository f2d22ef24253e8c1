"""The error family of the package.

Whatever a user can cause raises a `MossError`; an `assert` guards our own invariants. Entry points turn a
`MossError` into one line on stderr and its `exit_code`; anything else is a bug and keeps its traceback.
"""


class MossError(ValueError):
    """Base of every error that a user can cause. The message says what, where, and what to do."""

    exit_code = 1


class ConfigError(MossError):
    """Misspelt keys, wrong types or contradicting settings; lists all of them, one a line."""

    exit_code = 2


class DataError(MossError):
    """A manifest, audio file, code array or shard that cannot be used."""

    exit_code = 3


class CheckpointError(MossError):
    """A checkpoint that is incomplete, of another model, or of other data."""

    exit_code = 4


class GenerationError(MossError):
    """A request that cannot be synthesised."""

    exit_code = 5


class EvaluationError(MossError):
    """A scoring run that cannot be right: missing items, missing backends, wrong data."""

    exit_code = 6
