"""Generations are found by id in the whole process, without keeping tokenizers alive."""

import gc
import weakref

import torch

from moss.generation.history import MOST, History
from moss.generation.segments import AudioSegment
from moss.generation.speech import Speech
from tests.generation.toy import CausalTokenizer


def speech(name: str, code: int = 0, tokenizer: CausalTokenizer | None = None, error: str | None = None) -> Speech:
    return Speech(
        id=name,
        text="words",
        segments=[AudioSegment(torch.full((2, 4), code), 0)],
        stop_reason="end",
        seed=0,
        num_codebooks=4,
        tokenizer=tokenizer,
        error=error,
    )


def test_only_the_latest_are_kept() -> None:
    assert MOST >= 100
    history = History(2)
    for name in ("a", "b", "a", "c"):
        history.add(speech(name))
    assert history.find("b") is None
    assert history.find("a") is not None
    assert history.find("c") is not None


def test_the_newest_of_an_id_is_meant_and_failures_are_not_kept() -> None:
    history = History()
    history.add(speech("a", 1))
    history.add(speech("a", 2))
    history.add(speech("a", 3, error="too long"))
    found = history.find("a")
    assert found is not None
    assert int(found.codes[0, 0]) == 2


def test_names_are_new() -> None:
    history = History()
    assert [history.new_id() for _ in range(2)] == ["speech-0001", "speech-0002"]


def test_a_tokenizer_that_is_gone_leaves_its_fingerprint() -> None:
    history, tokenizer = History(), CausalTokenizer()
    history.add(speech("a", tokenizer=tokenizer))
    found = history.find("a")
    assert found is not None
    assert found.tokenizer is tokenizer
    alive = weakref.ref(tokenizer)
    del tokenizer, found
    gc.collect()
    assert alive() is None
    found = history.find("a")
    assert found is not None
    assert (found.tokenizer, found.fingerprint) == (None, "causal")


def test_a_tokenizer_without_weak_references_is_kept() -> None:
    class Whole:
        __slots__ = ()
        spec, fingerprint = CausalTokenizer.spec, "whole"
        encode, decode = CausalTokenizer.encode, CausalTokenizer.decode

    history, tokenizer = History(), Whole()
    history.add(speech("a", tokenizer=tokenizer))  # type: ignore[arg-type]
    found = history.find("a")
    assert found is not None
    assert found.tokenizer is tokenizer
