"""One training at a time writes in a run folder."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from moss.config.identity import run_folder
from moss.errors import CheckpointError, ConfigError
from moss.training.run import train
from moss.training.run_lock import exclusive
from tests.tiny import tiny_config, tiny_shards

HOLDER = """
import sys, time
from pathlib import Path
from moss.training.run_lock import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_is_named_and_its_end_frees_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDER, folder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        host = re.escape(socket.gethostname())
        message = rf"{folder}: is being written by pid {process.pid} on {host}; wait until it ends, or stop it and"
        with pytest.raises(CheckpointError, match=message), exclusive(folder):
            pass
        process.send_signal(signal.SIGKILL)
    with exclusive(folder):
        assert (folder / ".lock").read_text() == f"pid {os.getpid()} on {socket.gethostname()}\n"


@pytest.mark.parametrize("task", ["generator", "tokenizer"])
def test_a_training_in_a_folder_that_is_held(tmp_path: Path, task: str) -> None:
    shards = tiny_shards(tmp_path / "shards")
    config = tiny_config(shards, tmp_path / "runs", schedule__max_steps=2, task=task)
    folder = run_folder(config)
    with exclusive(folder), pytest.raises(CheckpointError, match=rf"is being written by pid {os.getpid()} on"):
        train(config)
    assert [path.name for path in folder.iterdir()] == [".lock"]
    if task == "generator":
        assert train(config) == folder
    else:
        with pytest.raises(ConfigError, match="task=tokenizer trains 'cat'"):
            train(config)
    # Whatever the end, the folder is free again.
    with exclusive(folder):
        pass


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("moss.training.run_lock.fcntl.flock", unsupported)
    with exclusive(tmp_path):
        assert "cannot be locked (No locks available); start no second run in it" in caplog.text
