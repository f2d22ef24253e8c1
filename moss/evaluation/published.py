"""Published rows of other tokenizers, drawn beside ours and never mixed with them: other data, other SIM model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from moss.config.evaluation import Metric

_FIELDS = {Metric.PESQ_NB_16K: "pesq_nb_16k", Metric.PESQ_WB: "pesq_wb", Metric.STOI: "stoi"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRow:
    """One tokenizer at one bit rate, as its table says; English speech."""

    model: str
    num_codebooks: int
    frames_per_s: float
    bits_per_s: float
    sim_wavlm: float
    """Cosine of WavLM embeddings: on another scale than any other encoder's."""
    stoi: float
    pesq_nb_16k: float
    pesq_wb: float

    @property
    def label(self) -> str:
        """Model and codebooks."""
        return f"{self.model} ({self.num_codebooks} codebook{'' if self.num_codebooks == 1 else 's'})"

    def value(self, metric: Metric) -> float | None:
        """The published value of a metric that is defined like ours; None for any other."""
        name = _FIELDS.get(metric)
        return None if name is None else float(getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The rows with what must be said of them wherever they are shown."""

    source: str
    mark: str
    rows: Sequence[PublishedRow]


@cache
def published_tokenizers() -> Published:
    """The rows that come with the package."""
    text = (files("moss.evaluation") / "assets" / "published_tokenizers.json").read_text(encoding="utf-8")
    plain = json.loads(text)
    return Published(source=plain["source"], mark=plain["mark"], rows=[PublishedRow(**row) for row in plain["rows"]])
