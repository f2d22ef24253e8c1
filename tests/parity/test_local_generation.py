"""MossTTSLocal v1's decode loop against the published one: batches, fewer codebooks, continuation, the last row."""

from typing import Any

import pytest
import torch
from torch import Tensor

from moss.config.generation import Compatibility, GenerationConfig, SamplerConfig
from moss.generation.loop import Generated, generate
from moss.model.local import LocalModel
from tests.parity.fixture_files import load_fixture
from tests.parity.test_local_model import model_of

GREEDY = SamplerConfig(temperature=0.0)


@pytest.fixture(scope="module")
def entry() -> dict[str, Any]:
    made = load_fixture("ref_local.pt.gz")["gen"]
    assert isinstance(made, dict)
    return made


@pytest.fixture(scope="module")
def model(entry: dict[str, Any]) -> LocalModel:
    return model_of(entry)


def cases() -> list[str]:
    """Names of the generations of the fixture."""
    return [name for name, made in load_fixture("ref_local.pt.gz")["gen"].items() if isinstance(made, list)]


def speak(model: LocalModel, entry: dict[str, Any], name: str) -> list[Generated]:
    """The generation of that name, with the setting that the name says."""
    kind, number = name.rstrip("0123456789"), name.lstrip("abcdefghijklmnopqrstuvwxyz")
    inputs = entry["cont_inputs" if kind == "cont" else "inputs"]
    prompts = [rows[mask] for rows, mask in zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)]
    penalty = int(number) / 10 if kind == "rep" else 1.1
    config = GenerationConfig(
        text=GREEDY,
        audio=SamplerConfig(temperature=0.0, repetition_penalty=penalty),
        num_codebooks=int(number) if kind == "nvq" else None,
        compatibility=Compatibility.reference,
    )
    budgets = [len(rows) - 1 - int(start) for start, rows in entry[name]]
    return generate(model, prompts, [0] * len(prompts), config, max_frames=budgets)


def check_rows(made: Generated, want: Tensor, filler: list[int]) -> None:
    """Row by row; what follows the end in the published batch is filler."""
    assert torch.equal(made.rows, want[: len(made.rows)])
    rest = want[len(made.rows) :]
    assert torch.equal(rest, torch.tensor([filler] * len(rest)).reshape(len(rest), want.shape[1]))


@pytest.mark.parametrize("name", cases())
def test_greedy_generation(model: LocalModel, entry: dict[str, Any], name: str) -> None:
    config = model.config
    for made, (start_length, rows) in zip(speak(model, entry, name), entry[name], strict=True):
        # The published count leaves the start of audio out.
        assert made.num_given == int(start_length) + 1
        check_rows(made, rows, [config.audio_end_token_id] + [config.codebook_size] * config.num_codebooks)


def test_the_penalty_is_skipped_when_greedy(model: LocalModel, entry: dict[str, Any]) -> None:
    pairs = [name for name in cases() if name.startswith("rep")]
    assert len(pairs) > 1
    first, *others = (speak(model, entry, name) for name in pairs)
    for other in others:
        assert all(torch.equal(a.rows, b.rows) for a, b in zip(first, other, strict=True))


def test_decode_keeps_the_row_that_ends(model: LocalModel, entry: dict[str, Any]) -> None:
    want = load_fixture("ref_local.pt.gz")["decode"]["segments"]
    for made, segments in zip(speak(model, entry, "rep10"), want, strict=True):
        assert len(made.segments) == len(segments)
        for got, codes in zip(made.segments, segments, strict=True):
            assert torch.equal(got.codes, codes)


def test_by_default_the_row_that_ends_has_no_codes(model: LocalModel, entry: dict[str, Any]) -> None:
    inputs = entry["inputs"]
    prompts = [rows[mask] for rows, mask in zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)]
    config = GenerationConfig(text=GREEDY, audio=GREEDY, max_frames=max(len(rows) for _, rows in entry["rep10"]))
    end, slot = model.config.audio_end_token_id, model.config.audio_assistant_gen_slot_token_id
    for made, (_, rows) in zip(generate(model, prompts, [0] * len(prompts), config), entry["rep10"], strict=True):
        chosen = rows[1:, 0]
        if end not in chosen or not torch.isin(chosen, torch.tensor([slot, end])).all():
            # The published loop was cut, or strayed into text that the default does not choose among.
            continue
        frames = int((rows[:, 0] == end).nonzero()[0]) - 1
        assert len(made.rows) == frames + 2
        assert torch.equal(made.rows[:-1], rows[: frames + 1])
        assert made.rows[-1].tolist() == [end] + [model.config.codebook_size] * model.config.num_codebooks
        assert torch.equal(made.segments[0].codes, rows[1 : frames + 1, 1:])
