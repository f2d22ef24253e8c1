"""MossTTSLocal v1.5's decode loop against the published one, with both stop heads."""

from typing import Any

import pytest
import torch

from moss.config.generation import Compatibility, GenerationConfig, SamplerConfig
from moss.generation.loop import generate
from tests.parity.fixture_files import load_fixture
from tests.parity.test_local_generation import check_rows
from tests.parity.test_local_v15_model import mode_names, model_of

GREEDY = SamplerConfig(temperature=0.0)


def entry_of(name: str) -> dict[str, Any]:
    entry = load_fixture("ref_local_v15.pt.gz")[name]
    assert isinstance(entry, dict)
    return entry


@pytest.mark.parametrize("compatibility", list(Compatibility))
@pytest.mark.parametrize("name", mode_names())
def test_greedy_generation(name: str, compatibility: Compatibility) -> None:
    entry, model = entry_of(name), model_of(name)
    inputs = entry["gen_inputs"]
    prompts = [rows[mask] for rows, mask in zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)]
    config = GenerationConfig(text=GREEDY, audio=GREEDY, compatibility=compatibility)
    budgets = [len(rows) - 1 - start for start, rows in entry["generated"]]
    made = generate(model, prompts, [0] * len(prompts), config, max_frames=budgets)
    filler = [model.config.pad_token_id] + [model.config.codebook_size] * model.config.num_codebooks
    for one, (start_length, rows) in zip(made, entry["generated"], strict=True):
        assert one.num_given == start_length + 1
        check_rows(one, rows, filler)
        assert torch.equal(one.segments[0].codes, one.rows[1:, 1:])
