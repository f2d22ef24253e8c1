"""MossTTSDelay's sampler, decode loop and segmentation against the published implementation."""

from typing import Any

import pytest
import torch
from torch import Tensor

from moss.config.generation import Compatibility, GenerationConfig, SamplerConfig
from moss.generation.delay_codes import audio_segments
from moss.generation.delay_loop import generate_delay
from moss.generation.sampling import keep_top_k, keep_top_p, penalise_seen
from tests.parity.fixture_files import load_fixture
from tests.parity.test_delay_model import model_of

SAMPLES_PER_FRAME = 1920
"""Of the published tokenizer, which the fixture's waveform lengths count in."""


@pytest.fixture(scope="module")
def fixture() -> dict[str, Any]:
    return load_fixture("ref_delay.pt.gz")


def seen_mask(ids: Tensor, size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.bool).scatter(0, ids.reshape(-1), True)


def test_sampler_filters(fixture: dict[str, Any]) -> None:
    entry = fixture["sampler"]
    logits = entry["logits"]
    assert torch.equal(keep_top_k(logits, 5), entry["top_k5"])
    assert torch.equal(keep_top_p(logits, 0.7), entry["top_p07"])
    assert torch.equal(keep_top_p(keep_top_k(logits, 5), 0.7), entry["top_k5_then_p07"])


def test_sampler_repetition_penalty(fixture: dict[str, Any]) -> None:
    entry = fixture["sampler"]
    logits, previous = entry["logits"], entry["prev"]
    size = logits.shape[-1]
    assert torch.equal(penalise_seen(logits, seen_mask(previous, size), 1.3), entry["rep13_2d"])
    per_head = torch.stack([seen_mask(previous[..., head], size) for head in range(previous.shape[-1])])
    assert torch.equal(penalise_seen(logits, per_head, 1.3).unsqueeze(0), entry["rep13_3d"])


def greedy(entry: dict[str, Any], num_rows: int, penalty: float) -> Tensor:
    sampler = SamplerConfig(temperature=0.0)
    config = GenerationConfig(
        text=sampler,
        audio=SamplerConfig(temperature=0.0, repetition_penalty=penalty),
        compatibility=Compatibility.reference,
    )
    decoded = generate_delay(model_of(entry), [entry["rows"]], [entry["seed"]], config, max_rows=num_rows)[0]
    assert decoded.num_given == entry["start_length"]
    return decoded.rows


def generation_cases() -> list[tuple[str, str, float]]:
    cases = []
    for name, entry in load_fixture("ref_delay.pt.gz")["gen"].items():
        cases.append((name, "generated", float(entry.get("rep", 1.0))))
        cases += [(name, key, int(key.removeprefix("generated_rep")) / 10) for key in entry if "generated_rep" in key]
    return cases


@pytest.mark.parametrize(("name", "key", "penalty"), generation_cases())
def test_greedy_generation(fixture: dict[str, Any], name: str, key: str, penalty: float) -> None:
    entry = fixture["gen"][name]
    num_new = len(entry[key]) - entry["start_length"]
    assert torch.equal(greedy(entry, num_new, penalty), entry[key])


@pytest.mark.parametrize("name", list(load_fixture("ref_delay.pt.gz")["decode"]))
def test_decode_segments(fixture: dict[str, Any], name: str) -> None:
    want = fixture["decode"][name]
    entry = fixture["gen"][name.removesuffix("_first_block")]
    rows, pad_code = entry["generated"], entry["config"]["audio_vocab_size"]
    if name.endswith("_first_block"):
        last_end = int((rows[:, 0] == entry["config"]["audio_end_token_id"]).nonzero()[-1])
        rows = rows[: last_end + 1]
    segments = audio_segments(rows, entry["start_length"], pad_code, Compatibility.reference)
    assert len(segments) == len(want["segments"])
    for segment, codes in zip(segments, want["segments"], strict=True):
        assert torch.equal(segment.codes, codes)
    kept = [(len(segment.codes) - segment.num_given) * SAMPLES_PER_FRAME for segment in segments]
    assert kept == want["kept_samples"]
    assert segments[0].num_given * SAMPLES_PER_FRAME == want["first_kept_sample"][0]
