"""Segments depend on seed and step alone; mistakes of a manifest are named."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from moss.config.model import TextTokenizerConfig, TextTokenizerKind
from moss.config.tokenizer_training import SemanticConfig, TokenizerTrainingConfig
from moss.data.audio import write_wav
from moss.data.manifest import Utterance, write_manifest
from moss.errors import CheckpointError, ConfigError, DataError
from moss.spec import TokenizerSpec
from moss.training.processes import Processes
from moss.training.tokenizer_data import SegmentBatch, SegmentData, SegmentPlan, SegmentSampler, SegmentStream
from moss.training.tokenizer_recordings import Recordings
from tests.training.tokenizer_runs import clip

SPEC = TokenizerSpec(sampling_rate_hz=24_000, samples_per_frame=480, num_codebooks=4, codebook_size=16)


def manifest(folder: Path, clips: list[Utterance]) -> Path:
    write_manifest(folder / "utterances.jsonl", clips)
    return folder / "utterances.jsonl"


def sampler(folder: Path, seed: int = 0, budget: int = 10**9) -> SegmentSampler:
    clips = [clip(folder, "long", 3.0), clip(folder, "short", 0.3)]
    return SegmentSampler(clips, Recordings(24_000, budget), SegmentPlan(9600, lambda step: 6, seed))


def test_a_step_has_its_segments_whoever_asks(tmp_path: Path) -> None:
    first, second = sampler(tmp_path), sampler(tmp_path, budget=0)
    direct = first.batch(7)
    streamed = next(iter(SegmentStream(second, 7)))
    assert torch.equal(direct.waves, streamed.waves)
    assert (direct.utterance_ids, direct.step) == (streamed.utterance_ids, 7)
    assert direct.waves.shape == (6, 9600)
    assert not torch.equal(direct.waves, first.batch(8).waves)
    assert not torch.equal(direct.waves, first.extra(7, 9, 0).waves)
    assert not torch.equal(direct.waves, sampler(tmp_path, seed=1).batch(7).waves)


def test_clips_are_drawn_by_duration_and_short_ones_padded(tmp_path: Path) -> None:
    batches = [sampler(tmp_path).batch(step) for step in range(40)]
    names = [name for batch in batches for name in batch.utterance_ids]
    assert 0.8 < names.count("long") / len(names) < 0.98
    batch = next(batch for batch in batches if "short" in batch.utterance_ids)
    segment = batch.waves[batch.utterance_ids.index("short")]
    assert segment[:7200].abs().max() > 0.1
    assert not segment[7200:].any()


def test_heldout_clips_are_never_trained_on(tmp_path: Path) -> None:
    clips = [clip(tmp_path, "a", 1.0), clip(tmp_path, "b", 1.0, "heldout"), clip(tmp_path, "c", 1.0)]
    data = SegmentData(TokenizerTrainingConfig(manifest=manifest(tmp_path, clips), segment_s=0.5), SPEC, 0, 10)
    assert [item.id for item in data.train_clips] == ["a", "c"]
    assert {name for step in range(10) for name in data.sampler.batch(step).utterance_ids} == {"a", "c"}
    assert [wave.shape for wave in data.val_dataloader()] == [(24_000,)]


def test_other_data_under_a_run_is_refused(tmp_path: Path) -> None:
    clips = [clip(tmp_path, "a", 1.0), clip(tmp_path, "b", 1.0, "heldout")]
    settings = TokenizerTrainingConfig(manifest=manifest(tmp_path, clips), segment_s=0.5)
    state = SegmentData(settings, SPEC, 0, 10).state_dict()
    SegmentData(settings, SPEC, 0, 10).load_state_dict(state)
    manifest(tmp_path, [*clips, clip(tmp_path, "c", 1.0)])
    with pytest.raises(CheckpointError, match="the manifest has changed since the checkpoint"):
        SegmentData(settings, SPEC, 0, 10).load_state_dict(state)


def test_mistakes_of_a_manifest_are_named(tmp_path: Path) -> None:
    def data(clips: list[Utterance], segment_s: float = 0.5) -> SegmentData:
        return SegmentData(TokenizerTrainingConfig(manifest=manifest(tmp_path, clips), segment_s=segment_s), SPEC, 0, 9)

    with pytest.raises(DataError, match=r"tokenizer_training.manifest: is not set; make one with"):
        SegmentData(TokenizerTrainingConfig(), SPEC, 0, 9)
    train, heldout = clip(tmp_path, "a", 1.0), clip(tmp_path, "b", 1.0, "heldout")
    with pytest.raises(DataError, match="no clip of split 'heldout' among 1"):
        data([train])
    with pytest.raises(DataError, match="no clip of split 'train' among 1"):
        data([heldout])
    with pytest.raises(DataError, match=r"segment_s=0.001 is shorter than one frame, 0.02 s"):
        data([train, heldout], segment_s=0.001)
    unknown = Utterance(id="u", audio=train.audio, text="u", language="en", split="train")
    with pytest.raises(DataError, match="u has no duration_s"):
        data([unknown, heldout])


def test_gain_is_the_items_own_and_repeats(tmp_path: Path) -> None:
    clips = [clip(tmp_path, "a", 1.0)]

    def batch(gain_db: float, step: int = 3) -> torch.Tensor:
        plan = SegmentPlan(9600, lambda step: 16, 0, gain_db)
        return SegmentSampler(clips, Recordings(24_000, 10**9), plan).batch(step).waves

    plain, louder = batch(0.0), batch(6.0)
    decibels = 20 * (louder.norm(dim=1) / plain.norm(dim=1)).log10()
    assert torch.equal(louder, batch(6.0))
    assert decibels.abs().max() <= 6.001
    assert decibels.max() > 2
    assert decibels.min() < -2
    other = 20 * (batch(6.0, 4).norm(dim=1) / batch(0.0, 4).norm(dim=1)).log10()
    assert (other - decibels).abs().max() > 1


def test_processes_share_the_segments_of_a_step(tmp_path: Path) -> None:
    clips = [clip(tmp_path, "long", 3.0), clip(tmp_path, "short", 0.3)]

    def batches(count: int) -> list[SegmentBatch]:
        plans = [
            SegmentPlan(9600, lambda step: 5 - step, 0, 3.0, Processes(count, rank, count)) for rank in range(count)
        ]
        return [SegmentSampler(clips, Recordings(24_000, 10**9), plan).batch(1) for plan in plans]

    (whole,), shares = batches(1), batches(3)
    assert [share.rows for share in shares] == [[0, 3], [1], [2]]
    assert sum(share.share for share in shares) == whole.share == 1
    for share in shares:
        assert torch.equal(share.waves, whole.waves[share.rows])
        assert share.utterance_ids == [whole.utterance_ids[row] for row in share.rows]


def test_stereo_segments_have_two_channels_and_mono_ones_are_doubled(tmp_path: Path) -> None:
    left = torch.linspace(-0.5, 0.5, 24_000)
    write_wav(tmp_path / "s.wav", torch.stack((left, -left)), 24_000)
    stereo = Utterance(id="s", audio=str(tmp_path / "s.wav"), text="s", language="en", duration_s=1.0, split="train")
    plan = SegmentPlan(9600, lambda step: 3, 0)
    for item, sign in ((stereo, -1), (clip(tmp_path, "mono", 0.1), 1)):
        waves = SegmentSampler([item], Recordings(24_000, 10**9, audio_channels=2), plan).batch(0).waves
        assert waves.shape == (3, 2, 9600)
        torch.testing.assert_close(waves[:, 1], sign * waves[:, 0], atol=1e-4, rtol=0)


def test_further_manifests_are_joined(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    clips = [clip(first, "a", 1.0), clip(first, "b", 1.0, "heldout")]
    sound = dataclasses.replace(clip(second, "a", 0.5), text="", extra={})
    settings = TokenizerTrainingConfig(
        manifest=manifest(first, clips), more_manifests=[manifest(second, [sound])], segment_s=0.5
    )
    data = SegmentData(settings, SPEC, 0, 10)
    assert [item.audio for item in data.train_clips] == [str(first / "a.wav"), str(second / "a.wav")]
    assert data.sampler.batch(0).transcripts is None
    alone = TokenizerTrainingConfig(manifest=manifest(first, clips), segment_s=0.5)
    assert SegmentData(alone, SPEC, 0, 10).fingerprint != data.fingerprint


@pytest.mark.parametrize(
    "change", [{"source": "other"}, {"text": "Other words."}, {"extra": {"downmixed_channels": 2}}]
)
def test_what_a_segment_and_its_transcript_come_from_is_in_the_fingerprint(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    clips = [clip(tmp_path, "a", 1.0), clip(tmp_path, "b", 1.0, "heldout")]

    def fingerprint() -> str:
        settings = TokenizerTrainingConfig(manifest=manifest(tmp_path, clips), segment_s=0.5)
        return SegmentData(settings, SPEC, 0, 10).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    clips[0] = dataclasses.replace(clips[0], **change)
    assert fingerprint() != before


def test_a_recording_on_both_sides_is_refused(tmp_path: Path) -> None:
    train, heldout = clip(tmp_path / "one", "a", 1.0), clip(tmp_path / "one", "b", 1.0, "heldout")
    twin = dataclasses.replace(clip(tmp_path / "two", "c", 1.0), sha256="5" * 64)
    settings = TokenizerTrainingConfig(
        manifest=manifest(tmp_path / "one", [train, dataclasses.replace(heldout, sha256="5" * 64)]),
        more_manifests=[manifest(tmp_path / "two", [twin])],
    )
    with pytest.raises(DataError, match="c is trained on and, as b, held out: the same recording; make the manifests"):
        SegmentData(settings, SPEC, 0, 10)


def test_a_missing_manifest_is_answered_with_the_commands_that_make_it(tmp_path: Path) -> None:
    settings = TokenizerTrainingConfig(manifest=tmp_path / "speech" / "utterances.jsonl")
    with pytest.raises(DataError) as caught:
        SegmentData(settings, SPEC, 0, 10)
    lines = str(caught.value).splitlines()
    assert "utterances.jsonl does not exist" in lines[0]
    assert lines[1:] == [
        f"  python data_prep/00_fetch_speech.py --root {tmp_path / 'speech'}",
        f"  python data_prep/01_manifest.py --root {tmp_path / 'speech'} --max-duration-s 60",
    ]


def test_segments_come_with_their_transcripts(tmp_path: Path) -> None:
    clips = [clip(tmp_path, "a", 1.0), clip(tmp_path, "short", 0.3), clip(tmp_path, "b", 1.0, "heldout")]
    semantic = SemanticConfig(weight=1.0, text_tokenizer=TextTokenizerConfig(kind=TextTokenizerKind.compact))
    settings = TokenizerTrainingConfig(manifest=manifest(tmp_path, clips), segment_s=0.5, semantic=semantic)
    sampler = SegmentData(settings, SPEC, 0, 10).sampler
    batch = next(batch for batch in map(sampler.batch, range(50)) if set(batch.utterance_ids) == {"a", "short"})
    assert batch.transcripts is not None
    for name, frames, length in zip(
        batch.utterance_ids, batch.transcripts.frames_B.tolist(), batch.transcripts.lengths_B.tolist(), strict=True
    ):
        assert (frames, length > 0) == {"a": (25, False), "short": (15, True)}[name]


def test_sources_have_the_share_that_they_are_given(tmp_path: Path) -> None:
    sources = {"much": "studio", "little": "game", "third": "radio", "held": "studio"}
    seconds = {"much": 3.0, "little": 0.6, "third": 2.0, "held": 1.0}
    clips = [
        dataclasses.replace(
            clip(tmp_path, name, seconds[name], "heldout" if name == "held" else "train"), source=source
        )
        for name, source in sources.items()
    ]
    settings = TokenizerTrainingConfig(
        manifest=manifest(tmp_path, clips), segment_s=0.5, source_weights={"game": 3.0, "studio": 1.0}
    )
    data = SegmentData(settings, SPEC, 0, 10)
    names = [name for step in range(60) for name in data.sampler.batch(step).utterance_ids]
    assert set(names) == {"much", "little"}
    assert 0.68 < names.count("little") / len(names) < 0.82
    with pytest.raises(ConfigError, match="no clip comes from tape; .*utterances.jsonl has game, radio, studio"):
        SegmentData(dataclasses.replace(settings, source_weights={"tape": 1.0}), SPEC, 0, 10)


def many(folder: Path, count: int, broken: int = 0) -> SegmentSampler:
    """A sampler of short clips, the last of which have no file."""
    clips = [clip(folder, f"c{i:02d}", 0.05) for i in range(count)]
    for item in clips[count - broken :]:
        Path(item.audio).unlink()
    return SegmentSampler(clips, Recordings(24_000, 0), SegmentPlan(480, lambda step: 16, 0))


def test_silence_takes_the_place_of_a_broken_recording_and_of_no_other(tmp_path: Path) -> None:
    intact, one = many(tmp_path / "intact", 6), many(tmp_path / "broken", 6, 1)
    numbers = range(4)
    batches = [one.batch(step) for step in numbers]
    silent = 0
    for step, batch in zip(numbers, batches, strict=True):
        expected = intact.batch(step)
        assert batch.utterance_ids == expected.utterance_ids
        lost = torch.tensor([name == "c05" for name in batch.utterance_ids])
        assert torch.equal(batch.waves, expected.waves.masked_fill(lost[:, None], 0.0))
        silent += int(lost.sum())
    assert silent > 1
    assert (one.broken.num_broken, one.broken.silent_segments) == (1, silent)
    # A resumed run meets the recording later, and hears the same.
    assert torch.equal(many(tmp_path / "broken", 6, 1).batch(3).waves, batches[3].waves)


def test_silence_is_stereo_where_segments_are(tmp_path: Path) -> None:
    clips = [clip(tmp_path, "a", 1.0), clip(tmp_path, "b", 1.0)]
    Path(clips[1].audio).write_bytes(b"RIFF")
    plan = SegmentPlan(9600, lambda step: 8, 0, gain_db=3.0)
    batch = SegmentSampler(clips, Recordings(24_000, 0, audio_channels=2), plan).batch(0)
    assert batch.waves.shape == (8, 2, 9600)
    assert [bool(wave.any()) for wave in batch.waves] == [name == "a" for name in batch.utterance_ids]
    assert set(batch.utterance_ids) == {"a", "b"}


def test_silence_has_no_transcript(tmp_path: Path) -> None:
    clips = [clip(tmp_path, "a", 0.3), clip(tmp_path, "gone", 0.3), clip(tmp_path, "b", 1.0, "heldout")]
    semantic = SemanticConfig(
        weight=1.0, whole_clips_only=False, text_tokenizer=TextTokenizerConfig(kind=TextTokenizerKind.compact)
    )
    settings = TokenizerTrainingConfig(manifest=manifest(tmp_path, clips), segment_s=0.5, semantic=semantic)
    sampler = SegmentData(settings, SPEC, 0, 10).sampler
    Path(clips[1].audio).unlink()
    batch = next(batch for batch in map(sampler.batch, range(50)) if set(batch.utterance_ids) == {"a", "gone"})
    assert batch.transcripts is not None
    rows = zip(batch.utterance_ids, batch.transcripts.frames_B, batch.transcripts.lengths_B, strict=True)
    assert all(
        (int(frames), bool(length)) == {"a": (15, True), "gone": (0, False)}[name] for name, frames, length in rows
    )


def test_broken_validation_clips_are_left_out_as_long_as_one_remains(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips = [clip(tmp_path, "a", 1.0), *(clip(tmp_path, f"h{i}", 0.2 + i / 10, "heldout") for i in range(3))]
    path = manifest(tmp_path, clips)

    def data(mine: Processes) -> SegmentData:
        return SegmentData(TokenizerTrainingConfig(manifest=path, segment_s=0.5), SPEC, 0, 10, mine)

    Path(clips[1].audio).unlink()
    assert [wave.shape[0] for wave in data(Processes()).val_dataloader()] == [7200, 9600]
    assert caplog.messages == [
        f"h0 is left out: it cannot be read any more: {clips[1].audio}: cannot be read: No such file or directory"
    ]
    shares = [[wave.shape[0] for wave in data(Processes(3, rank, 3)).val_dataloader()] for rank in range(3)]
    assert shares == [[7200], [9600], [0]]
    Path(clips[2].audio).write_bytes(b"")
    Path(clips[3].audio).write_bytes(b"RIFF")
    with pytest.raises(
        DataError, match=r"none of the 3 held-out recordings can be read; first: h0: .*; restore the fil"
    ):
        data(Processes()).val_dataloader()
