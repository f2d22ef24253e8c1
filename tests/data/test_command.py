import sys

import pytest

from moss.data.command import run_command
from moss.data.progress import track
from moss.errors import CheckpointError, DataError


@pytest.mark.parametrize(("error", "code"), [(DataError("a: wrong; do b"), 3), (CheckpointError("a: wrong; do b"), 4)])
def test_a_users_mistake_is_one_line_and_its_code(capsys, error, code):
    def fail(arguments):
        raise error

    assert run_command(fail, []) == code
    assert capsys.readouterr().err == "error: a: wrong; do b\n"


def test_control_c_is_one_line_and_130(capsys):
    def stop(arguments):
        raise KeyboardInterrupt

    assert run_command(stop, []) == 130
    assert capsys.readouterr().err == "interrupted: finished work is kept; start the same command again to go on\n"


def test_success_passes_the_arguments_on(monkeypatch):
    seen = []
    assert run_command(seen.append, ["--root", "x"]) == 0
    monkeypatch.setattr(sys, "argv", ["script", "--root", "y"])
    assert run_command(seen.append) == 0
    assert seen == [["--root", "x"], ["--root", "y"]]


def test_a_bug_keeps_its_traceback():
    def fail(arguments):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(fail, [])


def test_progress_yields_everything_and_is_silent_without_a_terminal(capsys):
    assert list(track(iter("abc"), "letters", 3)) == ["a", "b", "c"]
    assert list(track([], "letters", 0)) == []
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
