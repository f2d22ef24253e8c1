"""A folder of generations against its target clips: ground truth, tokenizer reconstruction, generated.

The voice that every clip of an utterance is compared with (SIM) is the same for all systems, so that their rows can be
compared: the row's `reference`, else the target clip of the next utterance of the same `speaker`, else, when nothing
tells the speaker or there is no other clip, the utterance's own target. In the last case the ground truth has no SIM:
a clip compared with itself proves nothing.

The reconstruction comes from the row's `reconstruction: {"wav": path}` or from a folder of `<request_id>.wav`. As soon
as one utterance has one, all with a target are expected to, and a lacking one counts as failed.
"""

from collections.abc import Sequence
from pathlib import Path

from moss.config.evaluation import GENERATION_METRICS, BootstrapConfig, EvalConfig, Metric
from moss.errors import ConfigError
from moss.evaluation.items import Item
from moss.evaluation.protocol import PROTOCOL
from moss.evaluation.records import Record
from moss.evaluation.report_charts import ChartGroup
from moss.evaluation.summary import Summary, SummaryRow, make_row
from moss.evaluation.tasks.generation_rows import Generation, read_generations
from moss.evaluation.training_curves import training_charts

GROUND_TRUTH = "ground truth"
RECONSTRUCTION = "tokenizer reconstruction"
GENERATED = "generated"
SYSTEMS = (GROUND_TRUTH, RECONSTRUCTION, GENERATED)

GROUP_LABELS = {"seen": "seen text", "heldout": "held-out text"}


class GenerationsTask:
    """Scores a generation folder.

    Args:
        config: Names the folder, and optionally a folder of reconstructions and a training run.

    Raises:
        ConfigError: no folder is named.
        DataError: generations.jsonl is missing or has a broken line.
        EvaluationError: rows that cannot be scored; a training run without loss curves.
    """

    name = "generations"
    protocol = PROTOCOL
    ranked_system = GENERATED
    shown_systems: Sequence[str] = SYSTEMS

    def __init__(self, config: EvalConfig) -> None:
        if config.generations is None:
            raise ConfigError("generations: benchmark=generations needs it, but it is not set")
        self.metrics = tuple(config.metrics) or GENERATION_METRICS
        # Read before anything is scored: a wrong folder must not cost an hour.
        run = config.training_run
        self._charts: list[ChartGroup] = [("Training", training_charts(run))] if run is not None else []
        rows = read_generations(config.generations, config.reconstruction)
        self.items = generation_items(rows, self.metrics)
        self.facts: dict[str, str] = {}

    def rows(self, records: Sequence[Record], bootstrap: BootstrapConfig) -> list[SummaryRow]:
        """Ground truth and reconstruction over all texts; generated for each group of texts."""
        rows = []
        for system in SYSTEMS:
            groups = self._groups(system)
            for group in groups if system == GENERATED else [""]:
                if groups:
                    label = row_label(system, group)
                    rows.append(make_row(label, records, self.metrics, bootstrap, system=system, group=group))
        return rows

    def group_rows(self, records: Sequence[Record], bootstrap: BootstrapConfig) -> list[SummaryRow]:
        """Ground truth and reconstruction for each group of texts, beside which `generated` is to be read."""
        return [
            make_row(row_label(system, group), records, self.metrics, bootstrap, system=system, group=group)
            for system in SYSTEMS
            for group in self._groups(system)
            if group
        ]

    def notes(self) -> list[str]:
        """What the voices were compared with."""
        if Metric.SIM not in self.metrics:
            return []
        generated = [item for item in self.items if item.system == GENERATED]
        kinds = [item.prompt_kind for item in generated]
        texts = {
            "reference": "the reference clip of the request",
            "other_clip": "another clip of the same speaker",
            "target": "the target clip itself (the ground truth then has no SIM)",
            "": "nothing: no clip of the voice is known, so they have no SIM",
        }
        parts = [f"{kinds.count(kind)} with {text}" for kind, text in texts.items() if kind in kinds]
        return [f"SIM compares every row of an utterance with the same clip: {'; '.join(parts)}."]

    def charts(self, rows: Sequence[SummaryRow], labels: dict[Metric, str]) -> list[ChartGroup]:
        """Loss curves of the training run."""
        return self._charts

    def write_files(self, folder: Path, summary: Summary) -> None:
        """None."""

    def _groups(self, system: str) -> list[str]:
        """Groups of a system's clips: the known ones in their order, then others as they come."""
        found = dict.fromkeys(item.group for item in self.items if item.system == system)
        return sorted(found, key=lambda group: list(GROUP_LABELS).index(group) if group in GROUP_LABELS else len(found))


def generation_items(generations: Sequence[Generation], metrics: Sequence[Metric]) -> list[Item]:
    """Every clip that should exist, system by system, in the order of the rows."""
    prompts = _other_clips(generations)
    items = []
    for system in SYSTEMS:
        expected = [row for row in generations if _is_expected(system, row, generations)]
        items += [_item(system, row, prompts.get(row.request_id), metrics) for row in expected]
    return items


def row_label(system: str, group: str) -> str:
    """How a row of the table is called."""
    return f"{system} ({GROUP_LABELS.get(group, group)})" if group else system


def _is_expected(system: str, row: Generation, rows: Sequence[Generation]) -> bool:
    if system == GENERATED:
        return True
    if system == GROUND_TRUTH:
        return row.target is not None
    any_made = any(other.reconstruction or other.reconstruction_error for other in rows)
    return row.target is not None and any_made


def _item(system: str, row: Generation, other_clip: Path | None, metrics: Sequence[Metric]) -> Item:
    prompt: Path | None
    if row.reference is not None and row.reference != row.target:
        prompt, kind = row.reference, "reference"
    elif other_clip is not None:
        prompt, kind = other_clip, "other_clip"
    else:
        prompt, kind = row.target, "target"
    wav, failure = {
        GROUND_TRUTH: (row.target, None),
        RECONSTRUCTION: (row.reconstruction, row.reconstruction_error or "no reconstruction was made of this clip"),
        GENERATED: (row.wav, row.error or "the row has no wav"),
    }[system]
    skipped = set()
    if prompt is None or (system == GROUND_TRUTH and kind == "target"):
        skipped.add(Metric.SIM)
    if row.target_s is None:
        skipped.add(Metric.DURATION_ERROR)
    return Item(
        system=system,
        group=row.group,
        utterance=row.request_id,
        text=row.text,
        language=row.language,
        metrics=tuple(metric for metric in metrics if metric not in skipped),
        wav=wav,
        failure=None if wav is not None else failure,
        prompt=prompt,
        prompt_kind=kind if prompt is not None else "",
        target=row.target,
        target_s=row.target_s,
    )


def _other_clips(rows: Sequence[Generation]) -> dict[str, Path]:
    """For each request, the target clip of the next utterance of its speaker, round the list; none for a lone clip."""
    by_speaker: dict[str, list[Generation]] = {}
    for row in rows:
        if row.speaker and row.target is not None:
            by_speaker.setdefault(row.speaker, []).append(row)
    others = {}
    for clips in by_speaker.values():
        for i, row in enumerate(clips):
            following = clips[(i + 1) % len(clips)].target
            if following is not None and following != row.target:
                others[row.request_id] = following
    return others
