"""What codecs do alike with samples."""

import numpy as np
import torch

from moss.evaluation.codecs.interface import (
    checked_samples,
    from_pcm16,
    package_version,
    to_pcm16,
    with_length,
)


def test_pcm16_clips_and_comes_back():
    pcm = to_pcm16(np.array([0.0, 0.5, 1.0, 2.0, -1.0, -2.0], dtype=np.float32))
    assert pcm.tolist() == [0, 16384, 32767, 32767, -32768, -32768]
    assert from_pcm16(pcm)[1] == 0.5
    assert from_pcm16(pcm).dtype == np.float32


def test_length_is_cut_or_filled():
    wave = np.arange(4, dtype=np.float32)
    assert with_length(wave, 2).tolist() == [0, 1]
    assert with_length(wave, 6).tolist() == [0, 1, 2, 3, 0, 0]


def test_samples_are_float32_on_the_cpu():
    samples = checked_samples(torch.ones(3, dtype=torch.float64))
    assert samples.dtype == np.float32


def test_versions():
    assert package_version("numpy") == f"numpy {np.__version__}"
    assert package_version("no-such-package") == "no-such-package (not installed)"
