import builtins
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch

from moss.data.audio import (
    audio_blocks,
    audio_info,
    load_audio,
    loudness_gain,
    normalise_loudness,
    open_blocks,
    read_audio,
    resample,
    write_wav,
)
from moss.errors import DataError
from tests.recordings import RATE_HZ, write_tone


def _write_g722(path, wave):
    from G722 import G722

    path.write_bytes(bytes(G722(16000, 64000).encode([int(value) for value in wave * 32767])))


def _write_aac(path, wave, rate_hz, **metadata):
    import av

    with av.open(str(path), "w") as container:
        container.metadata.update(metadata)
        stream = container.add_stream("aac", rate=rate_hz, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = rate_hz
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_libsndfile_formats(tmp_path, suffix):
    path = write_tone(tmp_path / f"a{suffix}", 0.5, channels=2)
    samples, rate_hz = read_audio(path)
    assert samples.shape == (8000, 2)
    assert samples.dtype == np.float32
    assert rate_hz == RATE_HZ
    info = audio_info(path)
    assert (info.sampling_rate_hz, info.channels, info.num_samples, info.duration_s) == (RATE_HZ, 2, 8000, 0.5)


def test_g722_decodes_to_16_khz(tmp_path):
    wave = 0.5 * np.sin(2 * np.pi * 300 * np.arange(RATE_HZ) / RATE_HZ)
    _write_g722(tmp_path / "a.g722", wave)
    loaded = load_audio(tmp_path / "a.g722", RATE_HZ).numpy()
    assert loaded.shape == (RATE_HZ,)
    # The codec delays by some samples; the best alignment must be close.
    errors = [np.abs(loaded[100 + lag : -400 + lag] - wave[100:-400]).mean() for lag in range(60)]
    assert min(errors) < 0.02
    assert audio_info(tmp_path / "a.g722").num_samples == RATE_HZ


def test_m4a_through_pyav(tmp_path):
    wave = 0.5 * np.sin(2 * np.pi * 300 * np.arange(22050) / 22050)
    _write_aac(tmp_path / "a.m4a", wave, 22050)
    loaded = load_audio(tmp_path / "a.m4a", 22050)
    assert abs(loaded.shape[0] - 22050) < 4096
    # The ends of a lossy stream ring; the middle must be the tone.
    assert 0.45 < float(loaded[4000:16000].abs().max()) < 0.55


def test_m4a_without_pyav_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.m4a").write_bytes(b"anything")
    real = builtins.__import__

    def without_av(name, *arguments, **keywords):
        if name == "av":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(DataError, match=r"a\.m4a: \.m4a needs PyAV.*pip install 'moss\[audio\]'"):
        read_audio(tmp_path / "a.m4a")


@pytest.mark.parametrize("suffix", [".wav", ".mp3", ".m4a"])
def test_corrupt_files_are_named(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"this is no audio at all" * 10)
    with pytest.raises(DataError, match=rf"a\{suffix}: corrupt or unknown audio: "):
        read_audio(path)
    with pytest.raises(DataError, match=rf"a\{suffix}: corrupt or unknown audio: "):
        audio_info(path)


def test_video_without_sound_is_named(tmp_path):
    import av

    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 16
        frame = av.VideoFrame(16, 16, "yuv420p")
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    with pytest.raises(DataError, match=r"a\.mkv: no audio stream"):
        read_audio(tmp_path / "a.mkv")


def test_tags_that_are_no_utf8_are_an_error_with_a_name(tmp_path):
    _write_aac(tmp_path / "a.mka", np.zeros(RATE_HZ), RATE_HZ, title="Zeichen")
    content = (tmp_path / "a.mka").read_bytes()
    assert b"Zeichen" in content
    (tmp_path / "a.mka").write_bytes(content.replace(b"Zeichen", b"Zei\xe4hen"))
    with pytest.raises(DataError, match=r"a\.mka: corrupt or unknown audio: "):
        read_audio(tmp_path / "a.mka")


def test_a_stream_without_a_decoder_is_named(tmp_path):
    path = tmp_path / "a.mka"
    _write_aac(path, np.zeros(RATE_HZ), RATE_HZ)
    path.write_bytes(path.read_bytes().replace(b"A_AAC", b"A_ZZZ"))
    with pytest.raises(DataError, match=r"a\.mka: PyAV has no decoder for its sound; convert the file to wav or flac"):
        read_audio(path)


def test_a_change_of_format_on_the_way_is_said(tmp_path):
    content = b""
    for rate_hz in (RATE_HZ, 22050):
        _write_aac(tmp_path / "part.aac", np.zeros(rate_hz), rate_hz)
        content += (tmp_path / "part.aac").read_bytes()
    (tmp_path / "a.aac").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.aac: changes from 16000 Hz mono fltp to 22050 Hz mono fltp on the way"):
        read_audio(tmp_path / "a.aac")


def test_samples_without_a_header_are_refused(tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(3200))
    with pytest.raises(DataError, match=r"a\.raw: samples without a header do not say their rate; convert the file"):
        read_audio(tmp_path / "a.raw")


def test_a_broken_header_does_not_take_the_memory(tmp_path):
    fast = write_tone(tmp_path / "fast.wav", 0.1)
    content = bytearray(fast.read_bytes())
    content[24:28] = struct.pack("<I", 2**31 - 1)
    fast.write_bytes(content)
    soundfile.write(tmp_path / "many.wav", np.full((1600, 1024), 0.1, np.float32), 384_000)
    tracemalloc.start()
    try:
        for path in (fast, tmp_path / "many.wav"):
            with open_blocks(path) as decoded:
                assert sum(block.shape[0] for block in decoded.blocks) == 1600
        assert tracemalloc.get_traced_memory()[1] < 3e8
    finally:
        tracemalloc.stop()


def test_what_a_filter_makes_of_the_largest_floats_is_refused(tmp_path):
    wave = np.where(np.arange(400) % 50 < 25, 3.4e38, -3.4e38).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, RATE_HZ, "FLOAT")
    assert np.array_equal(load_audio(tmp_path / "a.wav", RATE_HZ).numpy(), wave)
    with pytest.raises(DataError, match=r"a\.wav: non-finite samples"):
        load_audio(tmp_path / "a.wav", 24_000)


def test_a_stream_without_a_rate_is_refused(tmp_path):
    (tmp_path / "a.aac").write_bytes(b"\xff" * 50)
    with pytest.raises(DataError, match=r"a\.aac: corrupt or unknown audio: 0 Hz, 0 channels"):
        load_audio(tmp_path / "a.aac", RATE_HZ)


def test_a_mean_beyond_the_largest_float_is_refused(tmp_path):
    largest = np.full((100, 2), np.finfo(np.float32).max, np.float32)
    soundfile.write(tmp_path / "a.wav", largest, RATE_HZ, "FLOAT")
    with pytest.raises(DataError, match=r"a\.wav: non-finite samples"):
        load_audio(tmp_path / "a.wav", RATE_HZ)


def test_missing_empty_and_zero_length_files_are_told_apart(tmp_path):
    with pytest.raises(DataError, match=r"none\.wav: cannot be read: No such file"):
        read_audio(tmp_path / "none.wav")
    (tmp_path / "empty.wav").touch()
    with pytest.raises(DataError, match=r"empty\.wav: empty file \(0 bytes\)"):
        read_audio(tmp_path / "empty.wav")
    soundfile.write(tmp_path / "zero.wav", np.zeros(0), RATE_HZ)
    with pytest.raises(DataError, match=r"zero\.wav: zero duration"):
        read_audio(tmp_path / "zero.wav")
    with pytest.raises(DataError, match=r"zero\.wav: zero duration"):
        audio_info(tmp_path / "zero.wav")


def test_stereo_is_mixed_by_the_mean_and_more_channels_are_refused(tmp_path):
    soundfile.write(tmp_path / "two.wav", np.stack([np.full(100, 0.5), np.full(100, 0.25)], 1), RATE_HZ, "FLOAT")
    torch.testing.assert_close(load_audio(tmp_path / "two.wav", RATE_HZ), torch.full((100,), 0.375))
    path = write_tone(tmp_path / "eight.wav", 0.1, channels=8)
    with pytest.raises(DataError, match=r"eight\.wav: 8 channels, at most 2 are mixed down"):
        load_audio(path, RATE_HZ)
    assert load_audio(path, RATE_HZ, max_channels=None).shape == (1600,)


def test_non_finite_samples_are_refused(tmp_path):
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan, 0.1]), RATE_HZ, "FLOAT")
    with pytest.raises(DataError, match=r"nan\.wav: non-finite samples"):
        load_audio(tmp_path / "nan.wav", RATE_HZ)


def test_resampling_keeps_a_tone_and_its_length():
    wave = (0.5 * np.sin(2 * np.pi * 440 * np.arange(44100) / 44100)).astype(np.float32)
    resampled = resample(wave, 44100, 16000)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert resampled.dtype == np.float32
    assert resampled.shape == (16000,)
    np.testing.assert_allclose(resampled[200:-200], expected[200:-200], atol=2e-3)
    assert resample(wave, 44100, 44100) is wave


def test_write_wav_round_trip_and_refusals(tmp_path):
    wave = torch.tensor([0.0, 0.5, -0.5, 2.0, -2.0])
    write_wav(tmp_path / "deep" / "a.wav", wave, 24000)
    samples, rate_hz = read_audio(tmp_path / "deep" / "a.wav")
    assert rate_hz == 24000
    np.testing.assert_allclose(samples[:, 0], [0, 0.5, -0.5, 1, -1], atol=1e-4)
    with pytest.raises(
        DataError, match=r"b\.wav: expected a wave of shape \(samples,\) or \(2, samples\), got \(3, 2\)"
    ):
        write_wav(tmp_path / "b.wav", torch.zeros(3, 2), 24000)
    with pytest.raises(DataError, match=r"b\.wav: non-finite samples"):
        write_wav(tmp_path / "b.wav", np.array([np.inf], dtype=np.float32), 24000)
    assert not (tmp_path / "b.wav").exists()


def test_loudness_moves_towards_minus_20_dbfs_by_at_most_3_db():
    def level_db(wave):
        return 20 * np.log10(float(wave.square().mean().sqrt()))

    tone = torch.sin(torch.arange(16_000) * 0.05)
    for gain_db, expected_db in ((-18.0, -20.0), (-22.5, -20.0), (-10.0, -13.0), (-40.0, -37.0)):
        wave = tone * 10 ** ((gain_db - level_db(tone)) / 20)
        assert level_db(normalise_loudness(wave)) == pytest.approx(expected_db, abs=1e-3)
    assert torch.equal(normalise_loudness(torch.zeros(5)), torch.zeros(5))


def _write_noise(path, seconds, rate_hz, channels):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (round(seconds * rate_hz), channels))
    soundfile.write(path, noise, rate_hz, "FLOAT")
    return path


def test_stereo_keeps_its_channels_and_mono_is_heard_on_both(tmp_path):
    stereo = _write_noise(tmp_path / "stereo.wav", 0.5, 16_000, 2)
    samples, _ = read_audio(stereo)
    loaded = load_audio(stereo, 16_000, audio_channels=2)
    np.testing.assert_array_equal(loaded.numpy(), samples.T)
    assert loaded.is_contiguous()
    at_48 = load_audio(stereo, 48_000, audio_channels=2)
    assert at_48.shape == (2, 24_000)
    for channel in range(2):
        np.testing.assert_array_equal(at_48[channel].numpy(), resample(samples[:, channel].copy(), 16_000, 48_000))
    mono = _write_noise(tmp_path / "mono.wav", 0.5, 16_000, 1)
    twice = load_audio(mono, 24_000, audio_channels=2)
    assert twice.shape == (2, 12_000)
    assert torch.equal(twice[0], load_audio(mono, 24_000))
    assert torch.equal(twice[0], twice[1])


def test_more_than_two_channels_are_refused_for_stereo_too(tmp_path):
    three = _write_noise(tmp_path / "three.wav", 0.1, 16_000, 3)
    with pytest.raises(DataError, match=r"three\.wav: 3 channels, at most 2 are mixed down"):
        load_audio(three, 16_000, audio_channels=2)
    both = load_audio(three, 16_000, audio_channels=2, max_channels=None)
    np.testing.assert_allclose(both[1].numpy(), read_audio(three)[0].mean(1), atol=1e-7)
    with pytest.raises(DataError, match=r"audio_channels=3, block_s=10\.0: expected 1 or 2 channels"):
        load_audio(three, 16_000, audio_channels=3)
    with pytest.raises(DataError, match=r"audio_channels=1, block_s=0: expected 1 or 2 channels, more than 0 s"):
        list(audio_blocks(three, 16_000, 0))


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 44_100, 48_000, 192_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_blocks_are_the_whole_recording(tmp_path, rate_hz, channels):
    path = _write_noise(tmp_path / "a.wav", 1.237, rate_hz, 2)
    whole = load_audio(path, 24_000, audio_channels=channels)
    blocks = list(audio_blocks(path, 24_000, 0.1, audio_channels=channels))
    assert len(blocks) > 10
    assert all(block.shape[-1] for block in blocks)
    assert torch.equal(torch.cat(blocks, dim=-1), whole)
    # Resampling in parts is resampling at once.
    samples, _ = read_audio(path)
    mono = samples.mean(axis=1, dtype=np.float32)
    if channels == 1:
        np.testing.assert_array_equal(whole.numpy(), resample(mono, rate_hz, 24_000))
    assert whole.shape[-1] == pytest.approx(1.237 * 24_000, abs=1.5)


@pytest.mark.parametrize("suffix", [".g722", ".m4a", ".mp3", ".ogg", ".opus", ".flac"])
def test_blocks_of_every_decoder_are_the_whole_recording(tmp_path, suffix):
    wave = 0.5 * np.sin(2 * np.pi * 300 * np.arange(3 * RATE_HZ) / RATE_HZ)
    path = tmp_path / f"a{suffix}"
    if suffix == ".g722":
        _write_g722(path, wave)
    elif suffix == ".m4a":
        _write_aac(path, wave, RATE_HZ)
    else:
        coding = {"format": "OGG", "subtype": "OPUS"} if suffix == ".opus" else {}
        soundfile.write(path, wave, RATE_HZ, **coding)
    blocks = list(audio_blocks(path, RATE_HZ, 0.25))
    assert len(blocks) > 5
    assert torch.equal(torch.cat(blocks), load_audio(path, RATE_HZ))
    if suffix not in (".g722", ".m4a"):
        np.testing.assert_allclose(torch.cat(blocks), soundfile.read(path, dtype="float32")[0], atol=1e-6)


def test_a_long_recording_is_never_held_whole(tmp_path):
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 16_000, 2) as file:
        for _ in range(300):
            file.write(np.full((16_000, 2), 0.25))
    whole_bytes = 300 * 48_000 * 4
    tracemalloc.start()
    samples = sum(block.shape[0] for block in audio_blocks(path, 48_000, 1.0))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert samples == 300 * 48_000
    assert peak_bytes < whole_bytes / 20


def test_a_block_with_nan_stops_there_and_a_file_may_be_10_ms(tmp_path):
    samples = np.zeros(3 * RATE_HZ, dtype=np.float32)
    samples[-1] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, RATE_HZ, "FLOAT")
    blocks = audio_blocks(tmp_path / "nan.wav", RATE_HZ, 1.0)
    assert next(blocks).shape == (RATE_HZ,)
    with pytest.raises(DataError, match=r"nan\.wav: non-finite samples"):
        list(blocks)
    for rate_hz in (8_000, 192_000):
        short = write_tone(tmp_path / f"{rate_hz}.wav", 0.01, rate_hz=rate_hz)
        assert load_audio(short, 24_000).shape == (240,)
    one = _write_noise(tmp_path / "one.wav", 1 / 192_000, 192_000, 1)
    with pytest.raises(DataError, match=r"one\.wav: too short: 1 samples at 192000 Hz are none at 24000 Hz"):
        load_audio(one, 24_000)


def test_open_blocks_says_what_the_file_is(tmp_path):
    path = _write_noise(tmp_path / "a.wav", 1.0, 22_050, 2)
    with open_blocks(path, 0.5) as decoded:
        assert (decoded.sampling_rate_hz, decoded.channels) == (22_050, 2)
        assert [block.shape for block in decoded.blocks] == [(11_025, 2), (11_025, 2)]


def test_write_wav_writes_stereo(tmp_path):
    wave = torch.tensor([[0.0, 0.25, 0.5], [0.0, -0.25, -0.5]])
    write_wav(tmp_path / "a.wav", wave, 48_000)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav")[0], wave.numpy().T, atol=1e-4)
    assert torch.allclose(load_audio(tmp_path / "a.wav", 48_000, audio_channels=2), wave, atol=1e-4)


def test_channels_are_levelled_together():
    wave = torch.stack([torch.full((100,), 0.08), torch.full((100,), 0.04)])
    levelled = normalise_loudness(wave)
    gain = loudness_gain(float(wave.square().mean().sqrt()))
    assert torch.equal(levelled, wave * gain)
    assert 1.0 < gain <= 10 ** (3 / 20) + 1e-9
    assert loudness_gain(0.0) == 1.0
