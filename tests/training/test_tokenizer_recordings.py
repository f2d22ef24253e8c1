"""Recordings make room for others; broken ones are said once and end a run only where they are many."""

from pathlib import Path

import pytest
import torch

from moss.data.manifest import Utterance
from moss.errors import DataError
from moss.training.tokenizer_recordings import BrokenClips, Recordings
from tests.recordings import write_tone
from tests.training.tokenizer_runs import clip


def test_recordings_make_room(tmp_path: Path) -> None:
    clips = [clip(tmp_path, f"c{i}", 0.5) for i in range(3)]
    small = Recordings(24_000, budget_bytes=2 * 12_000 * 2)
    waves = [small.wave(item) for item in [*clips, *clips]]
    assert small._bytes <= 48_000
    assert all(torch.equal(a, b) for a, b in zip(waves[:3], waves[3:], strict=True))


def test_many_channels_are_read_where_the_manifest_accepted_their_mean(tmp_path: Path) -> None:
    path = str(write_tone(tmp_path / "many.wav", 0.2, channels=6))
    refused = Utterance(id="refused", audio=path, text="x", language="en")
    accepted = Utterance(id="accepted", audio=path, text="x", language="en", extra={"downmixed_channels": 6})
    with pytest.raises(DataError, match="6 channels, at most 2 are mixed down"):
        Recordings(24_000, 0).wave(refused)
    assert Recordings(24_000, 0).wave(accepted).shape == (4800,)
    assert Recordings(24_000, 0, audio_channels=2).wave(accepted).shape == (2, 4800)


def test_a_broken_recording_is_said_once_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = clip(tmp_path, "good", 0.2), clip(tmp_path, "bad", 0.2)
    Path(bad.audio).write_bytes(b"RIFF but nothing else")
    recordings = Recordings(24_000, 0)
    assert [recordings.find(item) is None for item in (bad, good, bad, bad)] == [True, False, True, True]
    (message,) = caplog.messages
    assert message.startswith(f"bad is left out: it cannot be read any more: {bad.audio}: corrupt or unknown audio")
    assert list(recordings.broken) == [bad.audio]
    assert recordings.silence(7).tolist() == [0.0] * 7
    assert torch.equal(Recordings(24_000, 0, audio_channels=2).silence(7), torch.zeros(2, 7))


def clips(count: int) -> list[Utterance]:
    return [Utterance(id=f"c{i}", audio=f"c{i}.wav", text="x", language="en") for i in range(count)]


def test_more_than_a_twentieth_broken_ends_training() -> None:
    items = clips(1000)
    subject = BrokenClips(items)
    for item in items[:379] * 2:
        subject.good(item)
    # 20 of 399 is the first share that is looked at.
    for item in items[379:398] * 3:
        subject.bad(item, "gone")
    assert (subject.num_broken, subject.silent_segments) == (19, 57)
    with pytest.raises(DataError) as caught:
        subject.bad(items[398], "gone too")
    assert str(caught.value) == (
        "20 of the 399 training recordings asked for so far (5.0%) cannot be read, more than 5%; the last: c398: gone "
        "too; restore the files and start again, which goes on from the newest checkpoint; or make the manifest again "
        "with data_prep/01_manifest.py, which puts them aside, and start a run with another name"
    )


def test_a_twentieth_broken_does_not() -> None:
    items = clips(1000)
    subject = BrokenClips(items)
    for item in items[:380]:
        subject.good(item)
    for item in items[380:400]:
        subject.bad(item, "gone")
    assert subject.num_broken == 20
    with pytest.raises(DataError, match=r"21 of the 401 training recordings"):
        subject.bad(items[400], "gone")


def test_of_few_clips_all_must_be_broken() -> None:
    items = clips(3)
    subject = BrokenClips(items)
    for item in [items[0], items[1], items[0]]:
        subject.bad(item, "gone")
    with pytest.raises(DataError, match=r"3 of the 3 training recordings asked for so far \(100.0%\)"):
        subject.bad(items[2], "gone")
