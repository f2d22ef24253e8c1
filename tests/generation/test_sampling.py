"""The sampler's filters and its draw by inversion."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moss.config.generation import GenerationConfig, SamplerConfig
from moss.config.schema import check
from moss.generation import sampling
from moss.generation.sampling import (
    ChannelSampler,
    SeenCodes,
    Uniforms,
    draw,
    keep_top_k,
    keep_top_p,
    penalise_seen,
    sample,
    scale,
    uniforms,
)

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0])
INF = float("inf")


def test_greedy_takes_the_largest_after_the_penalty() -> None:
    config = SamplerConfig(temperature=0.0, repetition_penalty=4.0, top_k=1)
    seen = torch.tensor([False, True, False, False])
    assert sample(LOGITS, config, torch.tensor(0.99)) == 1
    assert sample(LOGITS, config, torch.tensor(0.0), seen) == 2


def test_penalty_moves_both_signs_down() -> None:
    seen = torch.tensor([True, False, False, True])
    assert penalise_seen(LOGITS, seen, 2.0).tolist() == [0.5, 3.0, 2.0, -2.0]
    assert penalise_seen(LOGITS, seen, 1.0) is LOGITS


def test_scale() -> None:
    assert scale(LOGITS, 2.0).tolist() == [0.5, 1.5, 1.0, -0.5]
    assert scale(LOGITS, -1.0) is LOGITS


def test_top_k_keeps_exactly_k_among_equals() -> None:
    kept = keep_top_k(torch.zeros(2, 6), 4)
    assert torch.isfinite(kept).sum(-1).tolist() == [4, 4]
    assert keep_top_k(LOGITS, 2).tolist() == [-INF, 3.0, 2.0, -INF]
    assert keep_top_k(LOGITS, 0) is LOGITS
    assert keep_top_k(LOGITS, 9) is LOGITS


def test_top_k_with_ties_keeps_all_equals() -> None:
    tied = torch.tensor([[2.0, 1.0, 2.0, 2.0, 0.0], [5.0, 1.0, 1.0, 0.0, 1.0]])
    assert torch.isfinite(keep_top_k(tied, 2, ties=True)).tolist() == [
        [True, False, True, True, False],
        [True, True, True, False, True],
    ]
    assert keep_top_k(LOGITS, 2, ties=True).tolist() == keep_top_k(LOGITS, 2).tolist()


@pytest.mark.parametrize(("top_p", "kept"), [(1e-9, [1]), (0.5, [1]), (0.64, [1]), (0.7, [1, 2]), (0.95, [0, 1, 2])])
def test_top_p_keeps_the_id_that_crosses(top_p: float, kept: list[int]) -> None:
    assert torch.isfinite(keep_top_p(LOGITS, top_p)).nonzero().flatten().tolist() == kept


def test_draw_follows_the_probabilities() -> None:
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    ids = draw(LOGITS.expand(10_000, 4), uniform)
    shares = torch.bincount(ids, minlength=4) / 10_000
    torch.testing.assert_close(shares, LOGITS.softmax(0), atol=2e-4, rtol=0)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_draw_never_takes_what_was_ruled_out(uniform: float) -> None:
    logits = torch.tensor([-INF, -INF, 0.0, 0.0, -INF])
    assert draw(logits, torch.tensor(uniform)) in (2, 3)
    assert draw(torch.tensor([-INF, 5.0, -INF]), torch.tensor(uniform)) == 1


@pytest.mark.parametrize("top_p", [1.0, 0.7])
@pytest.mark.parametrize("top_k", [0, 5])
@pytest.mark.parametrize("penalty", [1.0, 1.7])
def test_sample_follows_the_filtered_probabilities(top_k: int, top_p: float, penalty: float) -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(4)) * 2
    seen = torch.zeros(12, dtype=torch.bool)
    seen[logits.argmax()] = True
    config = SamplerConfig(temperature=1.3, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
    uniform = (torch.arange(20_000) + 0.5) / 20_000
    ids = sample(logits.expand(20_000, 12), config, uniform, seen)
    scores = penalise_seen(logits / 1.3, seen, penalty)
    want = keep_top_p(keep_top_k(scores, top_k), top_p).softmax(0)
    torch.testing.assert_close(torch.bincount(ids, minlength=12) / 20_000, want, atol=2e-4, rtol=0)


def test_temperatures_of_their_own() -> None:
    uniform = (torch.arange(20_000) + 0.5) / 20_000
    config = SamplerConfig(temperature=1.0)
    temperatures = torch.tensor([0.0, 1.0, 2.0])
    ids = sample(LOGITS.expand(20_000, 3, 4), config, uniform[:, None].expand(-1, 3), temperatures=temperatures)
    assert (ids[:, 0] == 1).all()
    for column, temperature in ((1, 1.0), (2, 2.0)):
        shares = torch.bincount(ids[:, column], minlength=4) / 20_000
        torch.testing.assert_close(shares, (LOGITS / temperature).softmax(0), atol=2e-4, rtol=0)


def test_uniforms_are_a_function_of_seed_step_and_channel() -> None:
    seeds = torch.tensor([5, -(2**62), 0, 2**63 - 1])
    together = uniforms(seeds, 7, 33)
    assert together.shape == (4, 33)
    for index in range(4):
        assert torch.equal(uniforms(seeds[index : index + 1], 7, 33)[0], together[index])
    assert torch.equal(uniforms(seeds, 7, 12), together[:, :12])
    assert not torch.equal(uniforms(seeds, 8, 33), together)
    assert uniforms(torch.arange(50), 0, 33).unique().numel() > 50 * 33 - 5


def test_numbers_made_ahead_are_those_of_each_step() -> None:
    seeds, draws = torch.tensor([5, -7, 2**62]), [SamplerConfig(temperature=0.0), SamplerConfig()]
    ahead = Uniforms(seeds, 3, draws)
    for step in (0, 1, 40, 41):
        assert torch.equal(ahead.at(step), uniforms(seeds, step, 3))
    kept = torch.tensor([2, 0])
    ahead.keep(kept)
    for step in (42, 71, 72, 200, 3):
        assert torch.equal(ahead.at(step), uniforms(seeds[kept], step, 3))


def test_no_numbers_for_the_greedy() -> None:
    ahead = Uniforms(torch.tensor([5, 6]), 3, [SamplerConfig(temperature=0.0)] * 2)
    ahead.keep(torch.tensor([1]))
    assert ahead.at(7).tolist() == [[0.0] * 3]


CHANNELS = [
    SamplerConfig(temperature=1.3, top_k=5),
    SamplerConfig(temperature=0.0),
    SamplerConfig(temperature=0.7, top_k=5),
    SamplerConfig(temperature=1.3, top_p=0.6, repetition_penalty=3.0),
    SamplerConfig(temperature=1.3, top_k=5, penalty_window=4),
    SamplerConfig(temperature=0.0, repetition_penalty=3.0),
]


@pytest.mark.parametrize(("first", "end"), [(0, 6), (0, 1), (2, 5), (5, 6)])
@pytest.mark.parametrize("history", ["none", "pooled", "own"])
def test_channels_drawn_together_are_those_drawn_alone(first: int, end: int, history: str) -> None:
    random = torch.Generator().manual_seed(3)
    logits, uniform = torch.randn(50, 6, 20, generator=random) * 3, torch.rand(50, 6, generator=random)
    seen = None if history == "none" else torch.rand(50 if history == "own" else 1, 6, 20, generator=random) < 0.3
    together = ChannelSampler(CHANNELS, logits.device)
    assert (together.penalised, together.windows) == (True, [0, 0, 0, 0, 4, 0])
    part = slice(first, end)
    got = together.sample(logits[:, part], uniform[:, part], None if seen is None else seen[:, part], first)
    for channel in range(first, end):
        own = None if seen is None else seen[:, channel]
        want = sample(logits[:, channel], CHANNELS[channel], uniform[:, channel], own)
        assert torch.equal(got[:, channel - first], want)


def test_equal_channels_take_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(logits: Tensor, *_: object) -> Tensor:
        calls.append(logits.shape[1])
        return logits.argmax(-1)

    monkeypatch.setattr(sampling, "sample", counted)
    logits, uniform = torch.randn(2, 4, 9), torch.rand(2, 4)
    hot = SamplerConfig(temperature=3.0, top_k=2)
    for samplers, passes in [
        ([hot] * 4, [4]),
        ([hot, replace(hot, temperature=0.5), replace(hot, penalty_window=9), hot], [4]),
        ([hot, replace(hot, top_k=3), hot, hot], [3, 1]),
    ]:
        calls.clear()
        ids = ChannelSampler(samplers, logits.device).sample(logits, uniform)
        assert calls == passes
        assert torch.equal(ids, logits.argmax(-1))


@pytest.mark.parametrize("along", ["seeds", "steps", "channels"])
def test_uniforms_are_uniform_and_unrelated(along: str) -> None:
    if along == "seeds":
        numbers = uniforms(torch.arange(40_000), 3, 2)
    elif along == "steps":
        numbers = torch.cat([uniforms(torch.tensor([9]), step, 2) for step in range(4_000)])
    else:
        numbers = uniforms(torch.tensor([9, 10]), 3, 40_000).T
    assert numbers.min() >= 0
    assert numbers.max() < 1
    count = len(numbers)
    for column in numbers.T:
        cells = torch.bincount((column * 64).long(), minlength=64).double()
        # 63 degrees of freedom: above 120 is one in 100,000.
        assert ((cells - count / 64) ** 2 / (count / 64)).sum() < 120
        assert abs(column.mean() - 0.5) < 5 * (1 / 12 / count) ** 0.5
        # Neither neighbours along the axis nor the two columns go together.
        assert abs(torch.corrcoef(torch.stack([column[1:], column[:-1]]))[0, 1]) < 5 / count**0.5
    assert abs(torch.corrcoef(numbers.T)[0, 1]) < 5 / count**0.5


@pytest.mark.parametrize("windows", [(0, 0), (1, 1), (2, 2), (9, 9), (0, 1), (2, 1), (1, 4), (3, 0)])
def test_seen_codes_are_those_of_the_window(windows: tuple[int, int]) -> None:
    prompt = torch.tensor([[[1, 2], [7, 3], [0, 9]], [[4, 4], [5, 5], [6, 6]]])
    mask = torch.tensor([[True] * 3, [False, True, True]])
    history = SeenCodes(prompt, 7, windows, mask)
    new = [torch.tensor([[2, 2], [7, 0]]), torch.tensor([[3, -1], [1, 1]])]
    frames = [[[1, 2], [7, 3], [0, 9]], [[9, 9], [5, 5], [6, 6]]]
    counted = list(enumerate(windows))

    def want() -> list[list[set[int]]]:
        return [[{row[k] for row in part[-window:] if 0 <= row[k] < 7} for k, window in counted] for part in frames]

    def got() -> list[list[set[int]]]:
        return [[set(row.nonzero().flatten().tolist()) for row in part] for part in history.mask]

    assert history.mask.shape == (2, 2, 7)
    assert got() == want()
    for codes in new:
        history.add(codes.unsqueeze(1))
        for part, row in zip(frames, codes.tolist(), strict=True):
            part.append(row)
        assert got() == want()
    history.keep(torch.tensor([1]))
    frames.pop(0)
    assert got() == want()


def test_settings_out_of_range() -> None:
    wrong = {"text": {"top_k": -1, "top_p": 0.0, "repetition_penalty": 0}, "max_frames": 0, "batch_size": 0}
    assert check(GenerationConfig, wrong) == [
        "text.top_k: must be 0 (off) or more, got -1",
        "text.top_p: must be in (0, 1], got 0.0",
        "text.repetition_penalty: must be positive, got 0.0",
    ]
    assert check(GenerationConfig, {"codebooks": [{}, {"top_p": 2.0}, {"top": 1}]}) == [
        "codebooks[1].top_p: must be in (0, 1], got 2.0",
        "codebooks[2].top: no such setting; did you mean 'top_p'?",
    ]
    assert check(GenerationConfig, {"max_frames": 0, "batch_size": 0}) == [
        "max_frames: must be at least 1, got 0",
        "batch_size: must be at least 1, got 0",
    ]
