"""Mel frames and Griffin-Lim: aligned, unquantised, better than the quantised tokenizer of the same analysis."""

import pytest
import torch

from moss.config.tokenizer import MelRvqConfig
from moss.errors import DataError, EvaluationError
from moss.evaluation.codecs.interface import Codec
from moss.evaluation.codecs.mel_griffin_lim import DEFAULT_ITERATIONS, MelGriffinLim
from moss.tokenizer.mel_rvq import MelRvqTokenizer
from tests.evaluation.codecs.clips import check_every_length, clip, intelligibility


def test_reconstruction_begins_with_the_clip():
    coded = MelGriffinLim().reconstruct(clip())
    scores = {shift: intelligibility(clip(), coded, shift) for shift in (-160, -80, 0, 80, 160)}
    assert max(scores, key=scores.__getitem__) == 0


def test_it_bounds_the_tokenizer_of_the_same_analysis():
    tokenizer = MelRvqTokenizer.load(MelRvqConfig())
    quantised = tokenizer.decode(tokenizer.encode([clip()]), [clip().shape[0]])[0]
    assert intelligibility(clip(), MelGriffinLim().reconstruct(clip())) > intelligibility(clip(), quantised)


def test_iterations_are_those_of_the_tokenizer():
    assert MelRvqConfig().griffin_lim_iterations == DEFAULT_ITERATIONS


def test_every_length():
    check_every_length(MelGriffinLim(iterations=1))


def test_names():
    codec = MelGriffinLim()
    assert isinstance(codec, Codec)
    codec.reconstruct(clip()[:1600])
    assert (codec.name, codec.bits_per_s) == ("mel-griffin-lim", None)
    assert codec.sampling_rate_hz == 16_000
    assert "80 mel bands every 160 samples of 16000 Hz" in codec.revision
    assert "32 iterations" in codec.revision


def test_bad_input():
    with pytest.raises(EvaluationError, match="0 iterations, expected at least 1"):
        MelGriffinLim(iterations=0)
    with pytest.raises(DataError, match="average its channels"):
        MelGriffinLim(iterations=1).reconstruct(torch.zeros(2, 100))
