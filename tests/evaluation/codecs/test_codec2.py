"""Codec 2: aligned, of the mode's rate, better with more bits."""

import math
import sys
import types

import numpy as np
import pytest
import torch

from moss.config.evaluation import CODEC2_MODES
from moss.errors import DataError, EvaluationError
from moss.evaluation.codecs.codec2 import Codec2Codec, codec2_codecs
from moss.evaluation.codecs.interface import Codec
from tests.evaluation.codecs.clips import check_every_length, clip, intelligibility


@pytest.mark.parametrize("mode", ["3200", "1200", "700C"])
def test_reconstruction_begins_with_the_clip(mode):
    # The phases are the coder's own, so that waveforms do not correlate; intelligibility peaks where both agree.
    coded = Codec2Codec(mode).reconstruct(clip())
    scores = {shift: intelligibility(clip(), coded, shift) for shift in (-160, -80, 0, 80, 160)}
    assert max(scores, key=scores.__getitem__) == 0


def test_more_bits_are_more_intelligible():
    scores = [intelligibility(clip(), codec.reconstruct(clip())) for codec in codec2_codecs(("700C", "1200", "3200"))]
    assert scores == sorted(scores)
    assert scores[-1] - scores[0] > 0.05


@pytest.mark.parametrize("mode", CODEC2_MODES)
def test_rate_is_the_modes(mode, monkeypatch):
    codec = Codec2Codec(mode)
    assert codec.bits_per_s == int(mode.removesuffix("C"))
    coders = []
    make = codec._package.Codec2
    package = types.SimpleNamespace(Codec2=lambda number: coders.append(make(number)) or coders[-1])
    monkeypatch.setattr(codec, "_package", package)
    codec.reconstruct(clip()[:1600])
    (coder,) = coders
    size = coder.samples_per_frame()
    packet = coder.encode(np.zeros(size, dtype=np.int16))
    assert len(packet) == math.ceil(codec.bits_per_s * size / 8000 / 8)


def test_nothing_above_4_khz_is_left():
    coded = Codec2Codec("3200").reconstruct(torch.randn(32_000, generator=torch.Generator().manual_seed(0)) * 0.1)
    spectrum = np.abs(np.fft.rfft(coded.numpy())) ** 2
    assert spectrum[len(spectrum) * 5 // 8 :].sum() < 1e-3 * spectrum.sum()


def test_clips_do_not_depend_on_those_before():
    codec = Codec2Codec("1600")
    first = codec.reconstruct(clip())
    codec.reconstruct(clip().flip(0))
    # Unvoiced phases are drawn anew; a coder that went on from the clip before would begin in its last sound.
    again = codec.reconstruct(clip())
    assert intelligibility(clip(), again) == pytest.approx(intelligibility(clip(), first), abs=0.005)


def test_every_length():
    # It fills silence with a little noise.
    check_every_length(Codec2Codec("700C"), silence_peak=0.02)


def test_names():
    codecs = codec2_codecs(["2400", "700C"])
    assert [codec.name for codec in codecs] == ["codec2-2400", "codec2-700c"]
    assert isinstance(codecs[-1], Codec)
    assert (codecs[-1].label, codecs[-1].sampling_rate_hz) == ("Codec 2 700C", 16_000)
    assert "pycodec2 4" in codecs[-1].revision
    assert "mode 700C" in codecs[-1].revision


def test_unknown_mode():
    with pytest.raises(EvaluationError, match="mode '450', expected one of"):
        codec2_codecs(["450"])


def test_a_clip_that_cannot_be_coded():
    with pytest.raises(DataError, match="is empty"):
        Codec2Codec("3200").reconstruct(torch.zeros(0))


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycodec2", None)
    with pytest.raises(EvaluationError, match=r"needs pycodec2.*pip install 'moss\[eval\]'"):
        Codec2Codec("3200")
