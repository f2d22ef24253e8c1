"""Which tokenizers stream, and what is refused as sound; codes are covered in test_cat.py."""

import pytest
import torch
from torch import Tensor

from moss.errors import DataError
from moss.spec import TokenizerSpec
from moss.tokenizer import interface


class Plain:
    """Offers what every audio tokenizer must."""

    spec = TokenizerSpec(sampling_rate_hz=100, samples_per_frame=10, num_codebooks=2, codebook_size=4)
    fingerprint = "0" * 16

    def encode(self, waves: list[Tensor], num_codebooks: int | None = None) -> list[Tensor]:
        raise NotImplementedError

    def decode(self, codes: list[Tensor], num_samples: list[int] | None = None) -> list[Tensor]:
        raise NotImplementedError


class Streaming(Plain):
    """And streams as well."""

    def encoder_stream(self, num_codebooks: int | None = None) -> object:
        raise NotImplementedError

    def decoder_stream(self) -> object:
        raise NotImplementedError


class Unread(Streaming):
    """Its fingerprint would read all weights."""

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        raise AssertionError("the fingerprint was asked for")


def test_streams_are_told_apart() -> None:
    assert isinstance(Plain(), interface.AudioTokenizer)
    assert not interface.can_stream(Plain())
    assert interface.can_stream(Streaming())  # type: ignore[arg-type]


def test_asking_for_streams_reads_no_weights() -> None:
    assert interface.can_stream(Unread())  # type: ignore[arg-type]


@pytest.mark.parametrize("samples", [torch.zeros(0), torch.zeros(5), torch.full((4,), 3e38), torch.zeros(3).half()])
def test_sound_passes(samples: Tensor) -> None:
    """Large samples too, although their sum is not finite."""
    interface.check_samples("samples", samples)
    interface.check_samples("samples", torch.stack((samples, samples)), 2)
    interface.check_samples("samples", samples, 2)


@pytest.mark.parametrize(
    ("samples", "channels", "message"),
    [
        (torch.zeros(2, 5), 1, r"x: expected one dimension \(mono samples\), got shape \(2, 5\); average its channels"),
        (torch.zeros(()), 1, r"x: expected one dimension \(mono samples\), got shape \(\)"),
        (torch.zeros(3, 5), 2, r"x: expected shape \(2, samples\), or \(samples,\) .* got \(3, 5\); mix or average"),
        (torch.zeros(5, dtype=torch.int16), 1, r"x: expected float samples in \[-1, 1\], got torch.int16; divide by"),
        (torch.tensor([0, torch.inf, -torch.inf]), 1, "x: sample 1 is inf; 2 samples are not finite"),
        (torch.tensor([[0.0, 0.0], [0.0, torch.nan]]), 2, "x: sample 1 is nan; 1 samples are not finite"),
    ],
)
def test_what_is_no_sound_is_named(samples: Tensor, channels: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        interface.check_samples("x", samples, channels)


def test_a_stream_may_be_given_nothing_but_a_clip_may_not_be_empty() -> None:
    interface.check_samples("samples", torch.zeros(2, 0), 2)
    with pytest.raises(DataError, match="wave 1: is empty; leave empty clips out"):
        interface.check_waves([torch.zeros(2, 1), torch.zeros(2, 0)], 2)


def test_an_array_of_codes_is_named() -> None:
    interface.check_code_array("codes", torch.full((0, 1), 9), Plain.spec)
    with pytest.raises(DataError, match=r"lane 3: 9 at frame 0, codebook 1 is outside \[0, 4\] \(4 = no code\)"):
        interface.check_code_array("lane 3", torch.tensor([[4, 9]]), Plain.spec)
