import runpy
from pathlib import Path

import pytest

from tests.recordings import REPOSITORY

shown = runpy.run_path(str(REPOSITORY / "benchmarks" / "command_line.py"))["shown"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--reference", "/opt/checkout/"], "--reference DIR"),
        (["--reference=/opt/checkout", "--threads", "2"], "--reference=DIR --threads 2"),
        (["--reference", "../checkout", "--output", "benchmarks/results/a b.md"],
         "--reference DIR --output 'benchmarks/results/a b.md'"),
        (["--only", "60 s", "--long"], "--only '60 s' --long"),
        (["--output", str(Path.cwd() / "results/speed.md")], "--output results/speed.md"),
    ],
)  # fmt: skip
def test_paths_of_one_machine_are_not_shown(words: list[str], text: str) -> None:
    assert shown(words) == text
