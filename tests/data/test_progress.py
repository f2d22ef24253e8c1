"""Progress bars: everything passes through, and files get no bar."""

from moss.data.progress import track


def test_progress_yields_everything_and_is_silent_without_a_terminal(capsys):
    assert list(track(iter("abc"), "letters", 3)) == ["a", "b", "c"]
    assert list(track([], "letters", 0)) == []
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
