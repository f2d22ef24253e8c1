"""metrics.csv keeps every bit and is cut back when a run resumes."""

from pathlib import Path

from moss.training.metrics_file import MetricsFile


def test_rows_keep_every_bit_and_skip_the_epoch(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, 0)
    file.log_metrics({"train/loss": 1 / 3, "epoch": 2}, step=0)
    file.log_metrics({"val/loss": 2.0, "optim/lr": 1e-4}, step=1)
    assert path.read_text().splitlines() == [
        "step,key,value",
        "0,train/loss,0.3333333333333333",
        "1,optim/lr,0.0001",
        "1,val/loss,2.0",
    ]


def test_resuming_cuts_back_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, 0)
    for step in range(6):
        file.log_metrics({"train/loss": float(step)}, step=step)
    with path.open("a") as broken:
        broken.write("6,train/lo")
    again = MetricsFile(path, 4)
    assert path.read_text().splitlines()[1:] == [f"{step},train/loss,{step}.0" for step in range(4)]
    again.log_metrics({"train/loss": 9.0}, step=4)
    assert path.read_text().splitlines()[-1] == "4,train/loss,9.0"
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_fresh_start_forgets_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    MetricsFile(path, 0).log_metrics({"a": 1.0}, step=0)
    MetricsFile(path, 0)
    assert path.read_text().splitlines() == ["step,key,value"]
