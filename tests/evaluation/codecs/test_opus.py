"""Opus: aligned, of the asked rate, better with more bits."""

import sys

import pytest
import torch

from moss.errors import DataError, EvaluationError
from moss.evaluation.codecs.interface import Codec
from moss.evaluation.codecs.opus import OpusCodec, opus_codecs
from tests.evaluation.codecs.clips import check_every_length, clip, intelligibility, waveform_lag


@pytest.mark.parametrize("rate", [6000, 8000, 12000, 16000])
def test_reconstruction_begins_with_the_clip(rate):
    coded = OpusCodec(rate).reconstruct(clip())
    assert abs(waveform_lag(clip(), coded)) <= 2


def test_more_bits_are_more_intelligible():
    scores = [intelligibility(clip(), codec.reconstruct(clip())) for codec in opus_codecs((6000, 12000, 24000))]
    assert scores == sorted(scores)
    assert scores[-1] - scores[0] > 0.01


@pytest.mark.parametrize("rate", [6000, 12_000, 256_000])
def test_packets_have_the_nominal_rate(rate):
    codec = OpusCodec(rate)
    packets, _ = codec._encode(clip().numpy())
    assert codec.bits_per_s == rate
    assert 8 * sum(map(len, packets)) / (0.06 * len(packets)) == pytest.approx(rate)


def test_clips_do_not_depend_on_those_before():
    codec = OpusCodec(8000)
    first = codec.reconstruct(clip())
    codec.reconstruct(clip().flip(0))
    assert torch.equal(codec.reconstruct(clip()), first)


def test_every_length():
    check_every_length(OpusCodec(6000))


def test_names():
    codec = OpusCodec(6000)
    assert isinstance(codec, Codec)
    assert (codec.name, codec.label, codec.sampling_rate_hz) == ("opus-6000", "Opus 6 kbit/s", 16_000)
    for part in ("av 1", "6000 bit/s", "frame_duration 60", "vbr off", "application voip", "compression_level 10"):
        assert part in codec.revision


def test_settings_that_libopus_does_not_take():
    with pytest.raises(EvaluationError, match="5999 bit/s is outside 6000 to 256000"):
        opus_codecs([5999])


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (torch.zeros(0), "is empty"),
        (torch.zeros(2, 100), "average its channels"),
        (torch.full((100,), float("nan")), "not finite"),
        (torch.zeros(100, dtype=torch.int16), "float samples"),
    ],
)
def test_clips_that_cannot_be_coded(wave, message):
    with pytest.raises(DataError, match=message):
        OpusCodec(8000).reconstruct(wave)


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(EvaluationError, match=r"needs PyAV.*pip install 'moss\[audio\]'"):
        OpusCodec(8000)


def test_what_libopus_refuses_names_the_codec(monkeypatch):
    codec = OpusCodec(8000)
    monkeypatch.setitem(codec._options, "frame_duration", "7")
    with pytest.raises(EvaluationError, match="Opus 8 kbit/s: libopus failed on 40000 samples"):
        codec.reconstruct(clip())


def test_package_without_libopus(monkeypatch):
    import av

    monkeypatch.setattr(av, "codecs_available", {"flac"})
    with pytest.raises(EvaluationError, match="has no libopus"):
        OpusCodec(8000)
