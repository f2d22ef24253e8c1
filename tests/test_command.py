import argparse
import sys

import pytest

from moss.command import INTERRUPTED, num_bytes, run_command
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


def test_the_code_of_a_command_that_has_one_is_kept_and_what_ctrl_c_leaves_can_be_said(capsys):
    def stop(arguments):
        raise KeyboardInterrupt

    assert run_command(lambda arguments: 7, []) == 7
    assert run_command(stop, [], interrupted="nothing is left") == INTERRUPTED
    assert capsys.readouterr().err == "interrupted: nothing is left\n"


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5_000_000_000), ("0.5kb", 500), ("2e9", 2_000_000_000), ("17", 17), ("1.5Tb", 15 * 10**11)],
)
def test_sizes_with_and_without_units(text, size):
    assert num_bytes(text) == size


@pytest.mark.parametrize("text", ["much", "", "0", "-5GB", "5 parsec", "1e999", "0.1"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size; write 5GB, 500MB or a number of bytes"):
        num_bytes(text)
