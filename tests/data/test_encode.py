import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from moss.data.assemble import assemble
from moss.data.audio import load_audio, normalise_loudness
from moss.data.code_store import CodeStore, find_store, store_folder, store_key
from moss.data.encode import EncodeSettings, card_of, default_workers, encode_utterances
from moss.data.manifest_build import ManifestSettings, build_manifest
from moss.data.shard import ShardDataset
from moss.data.shard_writer import write_shards
from moss.data.sources import Candidate, folder_source
from moss.data.verify import verify_shards
from moss.errors import DataError
from tests.recordings import (
    SPEC,
    FakeEncoder,
    card,
    dying_encoder,
    leftovers,
    make_fake_encoder,
    write_folder,
    write_tone,
)


@pytest.fixture
def utterances(tmp_path):
    folder = write_folder(tmp_path / "wavs", 7, seconds=0.9)
    write_tone(folder / "clip06.wav", 1.1, rate_hz=44_100, channels=2)
    return build_manifest(tmp_path, folder_source(folder, language="en"), ManifestSettings()).utterances


def _store(tmp_path, **changes):
    return CodeStore(store_folder(tmp_path, card(**changes)), card(**changes))


def test_every_recording_gets_its_codes(tmp_path, utterances):
    store = _store(tmp_path)
    result = encode_utterances(utterances, store, make_fake_encoder, EncodeSettings(batch_size=3))
    assert (result.encoded, result.kept, result.quarantined, result.without_recording) == (7, 0, 0, 0)
    for utterance in utterances:
        codes = np.load(store.path(utterance.sha256))
        samples = store.num_samples(utterance.sha256)
        assert codes.dtype == np.uint16
        assert codes.shape == (SPEC.num_frames(samples), 3)
        assert abs(samples - utterance.duration_s * 16_000) <= 1
    assert store.folder.name == "fake-ffffffffffffffff-3"


def test_a_restart_does_only_what_is_missing(tmp_path, utterances):
    encoder = FakeEncoder()
    store = _store(tmp_path)
    encode_utterances(utterances[:3], store, lambda: encoder, EncodeSettings(batch_size=1))
    assert encoder.calls == 3
    again = _store(tmp_path)
    result = encode_utterances(utterances, again, lambda: encoder, EncodeSettings(batch_size=1))
    assert (result.encoded, result.kept) == (4, 3)
    assert encoder.calls == 7
    result = encode_utterances(utterances, _store(tmp_path), lambda: encoder, EncodeSettings())
    assert (result.encoded, result.kept, encoder.calls) == (0, 7, 7)


def test_incomplete_or_wrong_arrays_are_made_again(tmp_path, utterances):
    store = _store(tmp_path)
    encode_utterances(utterances, store, make_fake_encoder, EncodeSettings())
    paths = [store.path(utterance.sha256) for utterance in utterances]
    good = [path.read_bytes() for path in paths]
    paths[0].write_bytes(good[0][:-3])
    np.save(paths[1], np.zeros((2, 2), np.uint16))
    np.save(paths[2], np.load(paths[2]).astype(np.int64))
    paths[3].unlink()
    journal = store.folder / "encoded.jsonl"
    journal.write_text("".join(line for line in journal.open() if utterances[4].sha256 not in line))
    result = encode_utterances(utterances, _store(tmp_path), make_fake_encoder, EncodeSettings())
    assert (result.encoded, result.kept) == (5, 2)
    assert [path.read_bytes() for path in paths] == good


def test_processes_give_the_same_codes(tmp_path, utterances):
    one, two = CodeStore(tmp_path / "one", card()), CodeStore(tmp_path / "two", card())
    encode_utterances(utterances, one, make_fake_encoder, EncodeSettings(batch_size=2))
    encode_utterances(utterances, two, make_fake_encoder, EncodeSettings(batch_size=2, workers=2))
    for utterance in utterances:
        assert one.path(utterance.sha256).read_bytes() == two.path(utterance.sha256).read_bytes()


def test_a_worker_that_dies_is_explained(tmp_path, utterances):
    settings = EncodeSettings(batch_size=2, workers=2)
    with pytest.raises(DataError, match=r"an encoding process died, perhaps for want of memory; .* fewer --workers"):
        encode_utterances(utterances, _store(tmp_path), dying_encoder, settings)


def test_fewer_codebooks_are_a_prefix(tmp_path, utterances):
    whole, part = _store(tmp_path), _store(tmp_path, num_codebooks=2)
    for store in (whole, part):
        encode_utterances(utterances, store, make_fake_encoder, EncodeSettings())
    codes = np.load(part.path(utterances[0].sha256))
    assert codes.shape[1] == 2
    np.testing.assert_array_equal(codes, np.load(whole.path(utterances[0].sha256))[:, :2])
    assert part.folder != whole.folder


def test_bad_recordings_are_put_aside_and_the_others_done(tmp_path, utterances):
    Path(utterances[1].audio).write_bytes(b"nonsense")
    store = _store(tmp_path)
    make = partial(FakeEncoder, refuse_longer_s=1.0)
    result = encode_utterances(utterances, store, make, EncodeSettings(max_bad_frac=0.5))
    assert (result.encoded, result.quarantined) == (5, 2)
    rows = [json.loads(line) for line in (store.folder / "quarantine.jsonl").open()]
    assert {row["id"]: row["stage"] for row in rows} == {"clip01": "encode", "clip06": "encode"}
    reasons = {row["id"]: row["reason"] for row in rows}
    assert "corrupt or unknown audio" in reasons["clip01"]
    assert reasons["clip06"] == "wave 0: longer than this tokenizer takes"


def test_too_many_bad_recordings_stop_after_the_good_ones_are_kept(tmp_path, utterances):
    Path(utterances[1].audio).unlink()
    store = _store(tmp_path)
    with pytest.raises(DataError, match=r"1 of 7 recordings \(14\.3%\) cannot be used.*clip01: .*No such file"):
        encode_utterances(utterances, store, make_fake_encoder, EncodeSettings())
    assert sum(store.is_done(utterance.sha256) for utterance in utterances) == 6


def test_many_channels_are_encoded_only_where_the_manifest_accepted_them(tmp_path):
    folder = tmp_path / "wavs"
    write_tone(folder / "eight.wav", channels=8)
    (folder / "eight.txt").write_text("Words.")
    settings = ManifestSettings(downmix=True)
    (utterance,) = build_manifest(tmp_path, folder_source(folder, language="en"), settings).utterances
    store = _store(tmp_path)
    assert encode_utterances([utterance], store, make_fake_encoder, EncodeSettings()).encoded == 1


def test_settings_and_codebooks_out_of_range(tmp_path, utterances):
    with pytest.raises(DataError, match=r"--workers 0 and --batch-size 8 must be at least 1"):
        encode_utterances(utterances, _store(tmp_path), make_fake_encoder, EncodeSettings(workers=0))
    with pytest.raises(DataError, match=r"--num-codebooks 4: the tokenizer fake has 1 to 3"):
        card_of(FakeEncoder(), "fake", 4)
    assert card_of(FakeEncoder(), "fake", 2) == card(num_codebooks=2)
    assert card_of(FakeEncoder(), "fake") == card()
    assert default_workers("cuda") == 1
    assert 1 <= default_workers("cpu") <= 8


def test_a_store_belongs_to_one_tokenizer(tmp_path):
    folder = CodeStore(tmp_path / "a", card()).folder
    assert CodeStore(folder).card == card()
    with pytest.raises(DataError, match=r"a holds codes of tokenizer fake f{16} .*, not of fake 0{16} "):
        CodeStore(folder, card("0" * 16))
    with pytest.raises(DataError, match=r"none holds no tokenizer\.json; name a folder written by data_prep/02"):
        CodeStore(tmp_path / "none")
    (folder / "tokenizer.json").write_text('{"name": "x"}')
    with pytest.raises(DataError, match=r"tokenizer\.json: damaged .*; delete the folder and encode again"):
        CodeStore(folder)


def test_finding_the_only_store(tmp_path):
    with pytest.raises(DataError, match=r"no codes below .*codes; run data_prep/02_encode_codes\.py --root"):
        find_store(tmp_path)
    first = _store(tmp_path)
    assert find_store(tmp_path).folder == first.folder
    second = _store(tmp_path, fingerprint="0" * 16)
    with pytest.raises(
        DataError, match=r"2 code folders, shards take one.*fake 0{16}.*fake f{16}.*choose one with --codes"
    ):
        find_store(tmp_path)
    assert find_store(tmp_path, [second.folder]).card == second.card
    with pytest.raises(DataError, match="codes of two tokenizers must not be mixed"):
        find_store(tmp_path, [first.folder, second.folder])


def test_assembling_leaves_out_what_has_a_reason_and_stops_for_the_rest(tmp_path, utterances):
    import dataclasses

    Path(utterances[1].audio).write_bytes(b"nonsense")
    request = dataclasses.replace(utterances[0], id="request", audio="", sha256="")
    store = _store(tmp_path)
    result = encode_utterances([*utterances, request], store, make_fake_encoder, EncodeSettings(max_bad_frac=0.5))
    assert result.without_recording == 1
    found = assemble([*utterances, request], store)
    assert [item.utterance.id for item in found.coded] == [u.id for u in utterances if u.id != "clip01"]
    assert (found.quarantined, found.without_recording) == (1, 1)
    store.path(utterances[3].sha256).unlink()
    with pytest.raises(DataError, match=r"1 of 7 utterances have no codes in .*, first clip03; run data_prep/02"):
        assemble(utterances, store)


def test_leftovers_of_a_killed_run_are_cleared(tmp_path, utterances):
    import socket
    import subprocess
    import sys

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    store = _store(tmp_path)
    half = store.path(utterances[0].sha256).with_name(f".tmp-{socket.gethostname()}-{dead.pid}-1-x.npy")
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    encode_utterances(utterances, store, make_fake_encoder, EncodeSettings())
    assert leftovers(tmp_path) == []


def test_the_same_recording_as_target_and_as_reference(tmp_path):
    loud = write_tone(tmp_path / "loud.wav", peak=0.9)
    listed = [Candidate(id="a", audio=loud, text="Words.", language="en", references=(loud,),
                        extra={"reference": [str(loud)]})]  # fmt: skip
    utterances = build_manifest(tmp_path, listed, ManifestSettings()).utterances
    target, clip = utterances
    assert target.sha256 == clip.sha256
    assert store_key(target) != store_key(clip)
    store = _store(tmp_path)
    assert encode_utterances(utterances, store, make_fake_encoder, EncodeSettings()).encoded == 2
    assert encode_utterances(utterances, _store(tmp_path), make_fake_encoder, EncodeSettings()).kept == 2
    wave = load_audio(loud, 16_000)
    (as_is,), (levelled,) = FakeEncoder().encode([wave]), FakeEncoder().encode([normalise_loudness(wave)])
    assert not torch.equal(as_is, levelled)
    write_shards(tmp_path / "shards", assemble(utterances, store).coded, store.card)
    dataset = ShardDataset(tmp_path / "shards")
    assert [entry.split for entry in dataset.entries] == [target.split, "reference"]
    example = dataset.example(0)
    np.testing.assert_array_equal(example.codes, as_is)
    np.testing.assert_array_equal(example.references[0], levelled)


def test_an_utterance_goes_with_its_reference(tmp_path):
    voice = write_tone(tmp_path / "voice.wav", 2.0)
    listed = [Candidate(id=name, audio=write_tone(tmp_path / f"{name}.wav"), text=f"{name} words", language="en",
                        references=(voice,), extra={"reference": [str(voice)] if name == "a" else []})
              for name in "ab"]  # fmt: skip
    utterances = build_manifest(tmp_path, listed, ManifestSettings()).utterances
    store = _store(tmp_path)
    make = partial(FakeEncoder, refuse_longer_s=1.5)
    encode_utterances(utterances, store, make, EncodeSettings(max_bad_frac=0.5))
    found = assemble(utterances, store)
    assert [item.utterance.id for item in found.coded] == ["b"]
    assert found.quarantined == 2
    with pytest.raises(
        DataError, match=r"utterance a refers to 'ref-\w+', which is not in the manifest; make it again"
    ):
        assemble(utterances[:2], store)


class StreamingEncoder(FakeEncoder):
    """A fake with streams, and with two audio channels if asked, whose left one alone decides the codes."""

    def __init__(self, channels=1):
        super().__init__()
        self.spec = replace(SPEC, num_audio_channels=channels)
        self.streams, self.largest, self.shapes = 0, 0, set()

    def _codes(self, wave):
        self.shapes.add(tuple(wave.shape[:-1]))
        return super()._codes(wave if wave.dim() == 1 else wave[0])

    def encoder_stream(self, num_codebooks=None):
        self.streams += 1
        return FakeStream(self, num_codebooks)


class FakeStream:
    def __init__(self, encoder, num_codebooks):
        self.encoder, self.num_codebooks, self.held, self.num_samples = encoder, num_codebooks, None, 0

    def push(self, samples):
        self.encoder.largest = max(self.encoder.largest, samples.shape[-1])
        self.num_samples += samples.shape[-1]
        held = samples if self.held is None else torch.cat([self.held, samples], dim=-1)
        whole = held.shape[-1] // SPEC.samples_per_frame * SPEC.samples_per_frame
        self.held = held[..., whole:]
        return self._encode(held[..., :whole])

    def finish(self):
        return self._encode(self.held)

    def _encode(self, wave):
        if not wave.shape[-1]:
            return torch.zeros(0, self.num_codebooks or 3, dtype=torch.int64)
        return self.encoder.encode([wave], self.num_codebooks)[0]


def _long(tmp_path, **changes):
    folder = tmp_path / "long"
    write_tone(folder / "a.wav", 45.03, rate_hz=8_000)
    (folder / "a.txt").write_text("A long one.")
    (utterance,) = build_manifest(folder, folder_source(folder, language="en"), ManifestSettings()).utterances
    return replace(utterance, **changes)


@pytest.mark.parametrize("changes", [{}, {"split": "reference"}])
def test_a_long_recording_is_encoded_as_a_stream(tmp_path, utterances, changes):
    long = _long(tmp_path, **changes)
    encoder = StreamingEncoder()
    whole, part = CodeStore(tmp_path / "whole", card()), CodeStore(tmp_path / "part", card())
    encode_utterances([*utterances, long], whole, lambda: encoder, EncodeSettings())
    assert encoder.streams == 0
    encode_utterances([*utterances, long], part, lambda: encoder, EncodeSettings(stream_above_s=20))
    assert encoder.streams == 1
    assert encoder.largest <= 11 * 16_000
    key = store_key(long)
    assert part.num_samples(key) == whole.num_samples(key) == 720_480
    np.testing.assert_array_equal(np.load(part.path(key)), np.load(whole.path(key)))


def test_a_bad_long_recording_is_put_aside(tmp_path, utterances):
    long = _long(tmp_path)
    Path(long.audio).write_bytes(b"nonsense")
    settings = EncodeSettings(stream_above_s=20, max_bad_frac=0.5)
    result = encode_utterances([*utterances, long], _store(tmp_path), StreamingEncoder, settings)
    assert (result.encoded, result.quarantined) == (7, 1)


@pytest.mark.parametrize("stream_above_s", [120.0, 0.5])
def test_a_stereo_tokenizer_hears_two_channels(tmp_path, utterances, stream_above_s):
    encoder = StreamingEncoder(channels=2)
    stereo = card_of(encoder, "fake")
    assert stereo.num_audio_channels == 2
    store = CodeStore(store_folder(tmp_path, stereo), stereo)
    settings = EncodeSettings(stream_above_s=stream_above_s)
    assert encode_utterances(utterances, store, lambda: encoder, settings).encoded == 7
    assert encoder.shapes == {(2,)}
    assert CodeStore(store.folder).card == stereo
    index = write_shards(tmp_path / "shards", assemble(utterances, store).coded, stereo)
    assert index.tokenizer.spec.num_audio_channels == 2
    assert "stereo" in index.tokenizer.describe()
    again, problems = verify_shards(tmp_path / "shards")
    assert (again.tokenizer, problems) == (stereo, [])
    # Samples are counted per audio channel.
    assert store.num_samples(utterances[0].sha256) == 14_400


def test_files_of_a_mono_tokenizer_say_nothing_of_channels(tmp_path, utterances):
    store = _store(tmp_path)
    encode_utterances(utterances, store, make_fake_encoder, EncodeSettings())
    write_shards(tmp_path / "shards", assemble(utterances, store).coded, store.card)
    for path in (store.folder / "tokenizer.json", tmp_path / "shards" / "index.json"):
        assert "num_audio_channels" not in path.read_text()
    assert ShardDataset(tmp_path / "shards").tokenizer.num_audio_channels == 1
