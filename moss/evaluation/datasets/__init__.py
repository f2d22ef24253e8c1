"""Public test sets, read from a folder in the layout they are downloaded in."""

from moss.evaluation.datasets.listing import Dataset
from moss.evaluation.datasets.reading import KINDS, open_dataset

__all__ = ["KINDS", "Dataset", "open_dataset"]
