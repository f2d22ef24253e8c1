import builtins

import numpy as np
import pytest
import soundfile
import torch

from moss.data.audio import audio_info, load_audio, normalise_loudness, read_audio, resample, write_wav
from moss.errors import DataError
from tests.recordings import RATE_HZ, write_tone


def _write_g722(path, wave):
    from G722 import G722

    path.write_bytes(bytes(G722(16000, 64000).encode([int(value) for value in wave * 32767])))


def _write_m4a(path, wave, rate_hz):
    import av

    with av.open(str(path), "w") as container:
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
    _write_m4a(tmp_path / "a.m4a", wave, 22050)
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


def test_missing_empty_and_zero_length_files_are_told_apart(tmp_path):
    with pytest.raises(DataError, match=r"none\.wav: cannot be read: No such file"):
        read_audio(tmp_path / "none.wav")
    (tmp_path / "empty.wav").touch()
    with pytest.raises(DataError, match=r"empty\.wav: empty file \(0 bytes\)"):
        read_audio(tmp_path / "empty.wav")
    soundfile.write(tmp_path / "zero.wav", np.zeros(0), RATE_HZ)
    with pytest.raises(DataError, match=r"zero\.wav: zero duration"):
        read_audio(tmp_path / "zero.wav")


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
    with pytest.raises(DataError, match=r"b\.wav: expected a mono wave of shape \(samples,\), got \(2, 3\)"):
        write_wav(tmp_path / "b.wav", torch.zeros(2, 3), 24000)
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
