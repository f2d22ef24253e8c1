import json

import numpy as np
import pytest
import soundfile
import torch

from moss.data.manifest import Utterance, read_manifest
from moss.errors import DataError
from moss.evaluation.reconstruction import TIMINGS, reconstruct, timing_place, write_originals
from moss.evaluation.systems import TokenizerSystem
from tests.evaluation.systems import SPEC, GainTokenizer, HalfCodec, fake_systems, write_clips
from tests.recordings import write_tone


@pytest.fixture
def originals(tmp_path):
    return write_originals(read_manifest(write_clips(tmp_path)), tmp_path / "made")


def test_original_is_16_khz_pcm_whatever_the_recording_is(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, (44_100, 2)), 44_100)
    utterance = Utterance(id="a", audio=str(path), text="x", language="en")
    (original,) = write_originals([utterance], tmp_path / "made")
    info = soundfile.info(original.reference)
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (16_000, 1, 16_000, "PCM_16")


def test_clips_have_the_rate_of_their_system_and_the_length_of_the_original(tmp_path, originals):
    tokenizer, codec = fake_systems(codecs=[HalfCodec()])
    made = reconstruct(tokenizer, originals, tmp_path / "made") | reconstruct(codec, originals, tmp_path / "made")
    assert len(made) == 3 * 4
    info = soundfile.info(made["gain, 2 codebooks", "u1"].wav)
    assert (info.samplerate, info.frames, info.subtype) == (16_000, 19_200, "PCM_16")
    info = soundfile.info(made["Half 600", "u1"].wav)
    assert (info.samplerate, info.frames) == (8_000, 9_600)


def test_only_what_is_missing_is_made_again(tmp_path, originals):
    (system,) = fake_systems()
    first = reconstruct(system, originals, tmp_path / "made")
    first["gain, 2 codebooks", "u1"].wav.unlink()
    tokenizer = GainTokenizer()
    again = reconstruct(fake_systems(tokenizer)[0], originals, tmp_path / "made")
    assert tokenizer.encoded == 2
    changed = {key for key in first if first[key].processing_s != again[key].processing_s}
    assert changed == {("gain, 2 codebooks", "u1")}
    assert again["gain, 2 codebooks", "u1"].wav.is_file()


def test_clip_whose_time_is_not_known_is_made_again(tmp_path, originals):
    (system,) = fake_systems()
    reconstruct(system, originals, tmp_path / "made")
    journal = tmp_path / "made" / system.folder / TIMINGS
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines[:-1], json.dumps({"other": 1}), '{"wav": "half a li']))
    tokenizer = GainTokenizer()
    again = reconstruct(fake_systems(tokenizer)[0], originals, tmp_path / "made")
    assert tokenizer.encoded == 2
    assert all(made.processing_s for made in again.values())


def test_recording_that_is_gone_or_broken(tmp_path):
    (tmp_path / "empty.wav").touch()
    utterances = [
        Utterance(id=name, audio=str(tmp_path / f"{name}.wav"), text="x", language="en") for name in ("gone", "empty")
    ]
    originals = write_originals(utterances, tmp_path / "made")
    assert "gone.wav cannot be read: No such file" in originals[0].failure
    assert "empty file" in originals[1].failure
    tokenizer = GainTokenizer()
    made = reconstruct(fake_systems(tokenizer)[0], originals, tmp_path / "made")
    assert made["gain, 1 codebook", "empty"].failure == originals[1].failure
    assert tokenizer.encoded == 0


def test_samples_that_are_not_finite_are_a_failure_of_the_system(tmp_path, originals):
    class Broken(GainTokenizer):
        spec = SPEC

        def decode(self, codes, num_samples=None):
            return [torch.full_like(wave, float("nan")) for wave in super().decode(codes, num_samples)]

    made = reconstruct(TokenizerSystem("broken", Broken(), [1]), originals, tmp_path / "made")
    assert {each.failure for each in made.values()} == {"broken, 1 codebook: made samples that are not finite"}


def test_a_setting_that_fails_leaves_the_others(tmp_path, originals):
    class Second(GainTokenizer):
        def decode(self, codes, num_samples=None):
            if codes[0].shape[1] == 2:
                raise DataError("two codebooks: no; try another count")
            return super().decode(codes, num_samples)

    system = TokenizerSystem("second", Second(), [1, 2, 3])
    made = reconstruct(system, originals, tmp_path / "made")
    names = ["second, 1 codebook", "second, 2 codebooks", "second, 3 codebooks"]
    for original in originals:
        failures = [made[name, original.utterance.id].failure for name in names]
        assert failures == [None, "two codebooks: no; try another count", None]


def test_a_system_that_can_code_nothing_is_said_once_more_by_clip(tmp_path, originals, caplog):
    class Mute(GainTokenizer):
        def encode(self, waves, num_codebooks=None):
            raise DataError("no; try another")

    reconstruct(TokenizerSystem("mute", Mute(), [1]), originals, tmp_path / "made")
    assert "mute cannot code a second of noise: no; try another" in caplog.text
    for original in originals:
        assert f"mute, 1 codebook: {original.utterance.id} cannot be reconstructed: no; try another" in caplog.text


def test_a_full_disk_is_no_failure_of_the_system(tmp_path, originals, monkeypatch):
    def full(*_):
        raise DataError("no space left on / while writing; free some space and start again: finished work is kept")

    monkeypatch.setattr("moss.evaluation.reconstruction.write_wav", full)
    with pytest.raises(DataError, match="no space left"):
        reconstruct(fake_systems()[0], originals, tmp_path / "made")


def test_a_time_of_other_hardware_or_threads_is_taken_again(tmp_path, originals):
    (system,) = fake_systems()
    first = reconstruct(system, originals, tmp_path / "made")
    assert {made.timed_on for made in first.values()} == {timing_place(system)}
    tokenizer = GainTokenizer()
    elsewhere = TokenizerSystem("gain", tokenizer, device="Some GPU 9000")
    elsewhere.folder = system.folder
    again = reconstruct(elsewhere, originals, tmp_path / "made")
    assert tokenizer.encoded > 0
    assert all(made.timed_on.startswith("Some GPU 9000, ") for made in again.values())
    tokenizer.encoded = 0
    assert reconstruct(elsewhere, originals, tmp_path / "made") == again
    assert tokenizer.encoded == 0


def test_many_channels_are_read_where_the_manifest_accepted_their_mean(tmp_path):
    path = write_tone(tmp_path / "many.wav", 1.2, channels=6)
    refused = Utterance(id="refused", audio=str(path), text="x", language="en")
    accepted = Utterance(id="accepted", audio=str(path), text="x", language="en", extra={"downmixed_channels": 6})
    originals = write_originals([refused, accepted], tmp_path / "made")
    assert "6 channels, at most 2 are mixed down" in originals[0].failure
    assert originals[1].failure is None
    made = reconstruct(fake_systems()[0], originals, tmp_path / "made")
    assert made["gain, 1 codebook", "accepted"].failure is None
    assert made["gain, 1 codebook", "accepted"].wav.is_file()
