import numpy as np
import pytest
import soundfile

from moss.data.inspection import CLIPPED_FRAC, inspect_recording
from moss.data.manifest_build import ManifestSettings, build_manifest
from moss.data.sources import folder_source
from tests.recordings import RATE_HZ, write_tone


@pytest.mark.parametrize("rate_hz", [8_000, 44_100, 192_000])
def test_rates_of_speech_and_10_ms_are_fine(tmp_path, rate_hz):
    found = inspect_recording(write_tone(tmp_path / "a.wav", 0.01, rate_hz=rate_hz))
    assert (found.problem, found.sampling_rate_hz, found.num_samples) == ("", rate_hz, rate_hz // 100)


@pytest.mark.parametrize("rate_hz", [4_000, 384_000])
def test_other_rates_are_put_aside(tmp_path, rate_hz):
    found = inspect_recording(write_tone(tmp_path / "a.wav", rate_hz=rate_hz))
    assert found.problem == f"sampling rate {rate_hz} Hz: expected 8000 to 192000 Hz; convert the recording"


def test_a_defect_is_found_wherever_it_is(tmp_path):
    """Recordings are read in parts of ten seconds."""
    samples = np.zeros(25 * RATE_HZ, dtype=np.float32)
    soundfile.write(tmp_path / "silent.wav", samples, RATE_HZ, "FLOAT")
    assert inspect_recording(tmp_path / "silent.wav").problem.startswith("silent: peak 0.0e+00")
    samples[-5] = 0.5
    soundfile.write(tmp_path / "tick.wav", samples, RATE_HZ, "FLOAT")
    found = inspect_recording(tmp_path / "tick.wav")
    assert (found.problem, found.peak, found.num_samples) == ("", 0.5, 25 * RATE_HZ)
    samples[-1] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, RATE_HZ, "FLOAT")
    assert inspect_recording(tmp_path / "nan.wav").problem == "non-finite samples (NaN or infinity)"


def test_clipped_samples_are_counted_over_all_channels(tmp_path):
    samples = np.zeros((1000, 2), dtype=np.float32)
    samples[:30, 0], samples[30:40, 1] = 1.5, -1.0
    soundfile.write(tmp_path / "a.wav", samples, RATE_HZ)
    assert inspect_recording(tmp_path / "a.wav").clipped_frac == 0.02
    soundfile.write(tmp_path / "b.wav", samples * 0.6, RATE_HZ, "FLOAT")
    assert inspect_recording(tmp_path / "b.wav").clipped_frac == 0.0


def test_clipped_recordings_are_kept_marked_and_counted(tmp_path):
    folder = tmp_path / "wavs"
    for name, gain in (("good", 0.9), ("loud", 3.0)):
        write_tone(folder / f"{name}.wav", peak=gain)
        (folder / f"{name}.txt").write_text(f"Words of {name}.")
    result = build_manifest(tmp_path, folder_source(folder, language="en"), ManifestSettings())
    shares = {u.id: u.extra.get("clipped_frac") for u in result.utterances}
    assert shares["good"] is None
    assert shares["loud"] > CLIPPED_FRAC
    assert result.clipped == 1
    assert "clipped, kept (more than 0.1% of the samples at full scale): 1" in result.lines()
