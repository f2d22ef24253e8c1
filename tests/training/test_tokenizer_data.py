"""Segments depend on seed and step alone; mistakes of a manifest are named."""

from pathlib import Path

import pytest
import torch

from moss.config.tokenizer_training import TokenizerTrainingConfig
from moss.data.manifest import Utterance, write_manifest
from moss.errors import CheckpointError, DataError
from moss.spec import TokenizerSpec
from moss.training.tokenizer_data import Recordings, SegmentData, SegmentSampler, SegmentStream
from tests.recordings import write_tone

SPEC = TokenizerSpec(sampling_rate_hz=24_000, samples_per_frame=480, num_codebooks=4, codebook_size=16)


def clip(folder: Path, name: str, seconds: float, split: str = "train") -> Utterance:
    audio = write_tone(folder / f"{name}.wav", seconds)
    return Utterance(id=name, audio=str(audio), text=name, language="en", duration_s=seconds, split=split)


def manifest(folder: Path, clips: list[Utterance]) -> Path:
    write_manifest(folder / "utterances.jsonl", clips)
    return folder / "utterances.jsonl"


def sampler(folder: Path, seed: int = 0, budget: int = 10**9) -> SegmentSampler:
    clips = [clip(folder, "long", 3.0), clip(folder, "short", 0.3)]
    return SegmentSampler(clips, Recordings(24_000, budget), 9600, 6, seed)


def test_a_step_has_its_segments_whoever_asks(tmp_path: Path) -> None:
    first, second = sampler(tmp_path), sampler(tmp_path, budget=0)
    direct = first.batch(7)
    streamed = next(iter(SegmentStream(second, 7)))
    assert torch.equal(direct.wave_BN, streamed.wave_BN)
    assert (direct.utterance_ids, direct.step) == (streamed.utterance_ids, 7)
    assert direct.wave_BN.shape == (6, 9600)
    assert not torch.equal(direct.wave_BN, first.batch(8).wave_BN)
    assert not torch.equal(direct.wave_BN, first.batch(7, stream=9).wave_BN)
    assert not torch.equal(direct.wave_BN, sampler(tmp_path, seed=1).batch(7).wave_BN)


def test_clips_are_drawn_by_duration_and_short_ones_padded(tmp_path: Path) -> None:
    batches = [sampler(tmp_path).batch(step) for step in range(40)]
    names = [name for batch in batches for name in batch.utterance_ids]
    assert 0.8 < names.count("long") / len(names) < 0.98
    batch = next(batch for batch in batches if "short" in batch.utterance_ids)
    segment = batch.wave_BN[batch.utterance_ids.index("short")]
    assert segment[:7200].abs().max() > 0.1
    assert not segment[7200:].any()


def test_recordings_make_room(tmp_path: Path) -> None:
    clips = [clip(tmp_path, f"c{i}", 0.5) for i in range(3)]
    small = Recordings(24_000, budget_bytes=2 * 12_000 * 2)
    waves = [small.wave(item) for item in [*clips, *clips]]
    assert small._bytes <= 48_000
    assert all(torch.equal(a, b) for a, b in zip(waves[:3], waves[3:], strict=True))


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
