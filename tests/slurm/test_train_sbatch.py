"""The job script hands its words to train.py, by srun inside a SLURM job and directly outside of one."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(tmp_path: Path, words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    variables |= {"PYTHON": sys.executable, "PATH": f"{tmp_path}:{os.environ['PATH']}", **environment}
    command = ["bash", str(ROOT / "slurm" / "train.sbatch"), *words]
    return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120)


def fake_srun(tmp_path: Path) -> None:
    srun = tmp_path / "srun"
    srun.write_text('#!/usr/bin/env bash\necho "started by srun"\nexec "$@"\n')
    srun.chmod(0o755)


def test_outside_slurm_it_runs_directly(tmp_path: Path) -> None:
    fake_srun(tmp_path)
    done = run(tmp_path, ["experiment=quickstart", "seed=7", "--cfg", "job"])
    assert done.returncode == 0, done.stderr
    assert "seed: 7" in done.stdout
    assert "started by srun" not in done.stdout


def test_inside_a_job_srun_starts_it_from_the_folder_of_submission(tmp_path: Path) -> None:
    fake_srun(tmp_path)
    done = run(tmp_path, ["seed=7", "--cfg", "job"], SLURM_JOB_ID="1", SLURM_SUBMIT_DIR=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("started by srun\n")
    assert "seed: 7" in done.stdout


def test_a_mistake_ends_the_job_with_the_exit_code_of_train_py(tmp_path: Path) -> None:
    done = run(tmp_path, ["sede=7"])
    assert done.returncode == 2
    assert "did you mean 'seed'?" in done.stderr
