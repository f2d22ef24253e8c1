"""Loss curves of a training run, read from its metrics.csv: one `step,key,value` a row."""

import math
from pathlib import Path

from moss.errors import EvaluationError
from moss.evaluation.report_charts import Chart, Series

_HEADER = ["step", "key", "value"]
_CODEBOOK_PREFIX = "loss/codebook_"


def training_charts(run: Path) -> list[Chart]:
    """Loss over steps, and validation loss per codebook where it was logged.

    Args:
        run: Folder of a training run.

    Raises:
        EvaluationError: no metrics.csv, one of another format (path:line), or no loss in it.
    """
    path = run / "metrics.csv"
    columns = read_metrics(path)
    whole = [_series(name, columns) for name in ("train/loss", "val/loss") if name in columns]
    charts = []
    if whole:
        charts.append(Chart(title="Loss", x_label="step", y_label="loss (nats per label)", series=whole))
    for part, title in (("val", "Validation loss per codebook"), ("train", "Training loss per codebook")):
        names = sorted(name for name in columns if name.startswith(f"{part}/{_CODEBOOK_PREFIX}"))
        if names:
            series = [_series(name, columns) for name in names]
            charts.append(Chart(title=title, x_label="step", y_label="loss (nats)", series=series, ordered=True))
            break
    if not charts:
        raise EvaluationError(
            f"{path} has no train/loss, val/loss or val/loss/codebook_NN, so there is no curve to draw"
        )
    return charts


def read_metrics(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Losses of a metrics.csv by key, as (steps, values) in the order of the file; only finite values.

    A last line that a kill cut short is ignored, as it is when the run is resumed.

    Raises:
        EvaluationError: missing file, another header, or a row that is not `step,key,value` (path:line).
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}; is this a training run's folder?") from error
    if not lines or lines[0].split(",") != _HEADER:
        raise EvaluationError(f"{path}: the first line is {lines[:1]}, expected {','.join(_HEADER)}")
    columns: dict[str, tuple[list[float], list[float]]] = {}
    for number, line in enumerate(lines[1:], 2):
        try:
            step, key, value = line.split(",")
            point = (int(step), float(value))
        except ValueError as error:
            if number == len(lines):
                break
            raise EvaluationError(f"{path}:{number}: {line!r} is not {','.join(_HEADER)}") from error
        if "loss" in key and math.isfinite(point[1]):
            steps, values = columns.setdefault(key, ([], []))
            steps.append(point[0])
            values.append(point[1])
    return columns


def _series(name: str, columns: dict[str, tuple[list[float], list[float]]]) -> Series:
    steps, values = columns[name]
    short = name.split("/loss/")[-1].replace("_", " ") if _CODEBOOK_PREFIX in name else name
    return Series(name=short, x=steps, y=values)
