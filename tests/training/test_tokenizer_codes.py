"""A codebook that collapses is named with the remedy; codes move when they should, and averages with them."""

import dataclasses
import logging
from pathlib import Path

import pytest
import torch

from moss.training.ema import EmaWeights
from moss.training.tokenizer_codes import WINDOW_STEPS, CodebookCare
from moss.training.tokenizer_data import SegmentData
from tests.tokenizer.conftest import small_model
from tests.training.tokenizer_runs import tiny_run


def care(tmp_path: Path, codebook_size: int = 16, **changes: object) -> CodebookCare:
    config = tiny_run(tmp_path, tmp_path / "runs", **changes)
    model = small_model()
    spec = dataclasses.replace(model.config.spec(), codebook_size=codebook_size)
    data = SegmentData(config.tokenizer_training, spec, 0, 10)
    return CodebookCare(model, config, spec, data.sampler)


def codes(worst: int) -> torch.Tensor:
    """All 16 codes of four codebooks, but one code only of the `worst`."""
    drawn = torch.arange(64).remainder(16).expand(4, 64).clone()
    drawn[worst] = 3
    return drawn.T[None]


def test_a_collapsed_codebook_is_named_once_with_the_remedy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    subject = care(tmp_path)
    with caplog.at_level(logging.WARNING):
        for step in range(3 * WINDOW_STEPS):
            subject.count(codes(worst=2), step)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(
        "step 99: codebook 2 has collapsed: 6.2% of its 16 codes used in the last 100 steps, perplexity "
        "1.0; expected at least 25% and 0.8. Fit codebooks"
    )
    assert "tokenizer_training.bypass_steps and init_frames (now 2 and 64)" in message
    assert "replace_every_steps (now 3)" in message
    with caplog.at_level(logging.WARNING):
        for step in range(3 * WINDOW_STEPS, 4 * WINDOW_STEPS):
            subject.count(codes(worst=1), step)
    assert "codebook 1 has collapsed" in caplog.messages[-1]


def drawn(used: int, often: int) -> torch.Tensor:
    """Of 256 codes the first `used`, the very first so often as all others together occur in `often` rounds."""
    rare = torch.arange(used)
    frames = torch.cat((rare, torch.zeros(often * used, dtype=torch.int64)))
    return frames.repeat(-(-256 // len(frames)))[None, :, None].expand(1, -1, 4)


@pytest.mark.parametrize(
    ("used", "often", "collapses"),
    [(53, 0, True), (53, 7, True), (37, 4, True), (63, 0, True), (64, 0, False), (200, 9, True), (200, 1, False)],
)
def test_few_codes_or_uneven_use_is_a_collapse(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, used: int, often: int, collapses: bool
) -> None:
    """0.207 and 0.145 of the codes in use are what collapsed runs had; 200 codes can carry as much as 2 or as 35."""
    subject = care(tmp_path, codebook_size=256)
    subject.count(drawn(used, often), WINDOW_STEPS - 1)
    assert [f"codebook {i} has collapsed" in caplog.text for i in range(4)] == [collapses] * 4
    assert (f"{100 * used / 256:.1f}% of its 256 codes" in caplog.text) == collapses


def test_use_is_that_of_the_last_windows(tmp_path: Path) -> None:
    subject = care(tmp_path)
    subject.count(codes(worst=0), 0)
    assert subject.health().used_frac == (1 / 16, 1, 1, 1)
    for step in range(WINDOW_STEPS, 3 * WINDOW_STEPS + 1):
        subject.count(codes(worst=3), step)
    assert subject.health().used_frac == (1, 1, 1, 1 / 16)


def test_state_is_restored(tmp_path: Path) -> None:
    first, second = care(tmp_path), care(tmp_path)
    first.count(codes(worst=0), WINDOW_STEPS - 1)
    first.count(codes(worst=1), WINDOW_STEPS)
    second.restore(first.state())
    assert second.health() == first.health()
    assert all(torch.equal(value, second.state()[name]) for name, value in first.state().items())


def test_moved_codes_move_in_the_average_too(tmp_path: Path) -> None:
    subject = care(tmp_path, replace_every_steps=5, bypass_steps=0, init_frames=0, replace_until_frac=0.5)
    model = subject._model
    ema = EmaWeights(model)
    name = "quantizer.quantizers.0.codebook.weight"
    before = model.state_dict()[name].clone()
    assert subject.before_step(4, {}, ema) == 0
    # Nothing was counted: every row is dead.
    assert subject.before_step(5, {}, ema) == 4 * 16
    assert not torch.equal(model.state_dict()[name], before)
    assert torch.equal(ema.state_dict()[name], model.state_dict()[name])
    # 10 of 12 steps is past half of the run.
    assert subject.before_step(10, {}, ema) == 0


def test_fitting_carries_the_average_along(tmp_path: Path) -> None:
    subject = care(tmp_path, bypass_steps=3, init_frames=32)
    ema = EmaWeights(subject._model)
    with torch.no_grad():
        next(subject._model.parameters()).add_(1)
    moments = {parameter: {"exp_avg": 1} for parameter in subject._model.quantizer.parameters()}
    subject.before_step(3, moments, ema)
    assert not moments
    assert all(torch.equal(value, ema.state_dict()[name]) for name, value in subject._model.state_dict().items())
