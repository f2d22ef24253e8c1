"""The generation benchmark without a checkout of the published code: what it prepares, and what it refuses."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from moss.command import run_command
from moss.config.generation import Compatibility
from moss.config.model import DelayModelConfig, LocalModelConfig
from tests.recordings import REPOSITORY

SMALL = {"vocab_size": 151_936, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
SMALL |= {"intermediate_size": 16, "num_codebooks": 3, "max_positions": 400}


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / "benchmarks"))
        return runpy.run_path(str(REPOSITORY / "benchmarks" / "generation.py"))


def test_a_folder_that_is_no_checkout_is_refused_at_once(
    script: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(script["main"], ["--reference", str(tmp_path)]) != 0
    message = capsys.readouterr().err
    assert f"{tmp_path} has no moss_tts_delay/modeling_moss_tts.py" in message
    assert "checkout of OpenMOSS/MOSS-TTS" in message


@pytest.mark.parametrize("compatibility", list(Compatibility))
def test_no_run_ends_before_its_frames(script: dict[str, Any], compatibility: Compatibility) -> None:
    globals_of = script["_models"].__globals__
    globals_of["GEOMETRY"].update(SMALL)
    globals_of["DEPTH"].update(depth_hidden_size=8, depth_num_layers=1, depth_intermediate_size=8, depth_mlp_size=8)
    delay, local = script["_models"]()
    assert isinstance(delay.config, DelayModelConfig)
    assert isinstance(local.config, LocalModelConfig)
    for model, batch in ((delay, 1), (local, 2)):
        rows = script["_ours"](model, script["_prompt"](model.config, batch), 20, compatibility)
        assert rows.shape == (batch, 20, 4)
        assert (rows[:, -1, 1:] < model.config.codebook_size).all()
        special = model.config.special_tokens
        assert not torch.isin(rows[..., 0], torch.tensor([special.audio_end, special.delay_slot])).any()
