"""The offline loop of MossTTSRealtime: independence of neighbours, limits, what may be drawn, training's rows."""

import logging
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moss.config.generation import Compatibility, GenerationConfig, SamplerConfig
from moss.errors import GenerationError
from moss.generation.loop import Generated, StopReason
from moss.generation.realtime_loop import (
    FrameSampler,
    RealtimePrompt,
    generate_realtime,
    prefill_batch,
    spoken_rows,
)
from moss.sequence.prompt import Turn
from tests.generation.realtime_toy import SAMPLED, TEXT, toy_codes, toy_config, toy_layout, toy_model

ENDLESS = replace(SAMPLED, runaway_repeats=0)


def prompt_of(text: str, reference: Tensor | None = None) -> RealtimePrompt:
    layout = toy_layout()
    rows = torch.cat([layout.ensemble_rows(reference), layout.open_turn_rows("assistant", True)])
    return RealtimePrompt(rows=rows, text_ids=layout.encode(text))


PROMPTS = [prompt_of(TEXT), prompt_of("Hi."), prompt_of("One two three", toy_codes(7)), prompt_of("star key")]
SEEDS = [1, 2, 3, 2**62]


def codes_of(result: Generated) -> Tensor:
    return torch.cat([segment.codes for segment in result.segments])


def test_a_request_does_not_depend_on_its_neighbours() -> None:
    together = generate_realtime(toy_model(), PROMPTS, SEEDS, SAMPLED)
    for prompt, seed, result in zip(PROMPTS, SEEDS, together, strict=True):
        alone = generate_realtime(toy_model(), [prompt], [seed], SAMPLED)[0]
        assert torch.equal(alone.rows, result.rows)
        assert alone.stop_reason is result.stop_reason
    assert len({len(result.rows) for result in together}) > 1, "they should end at different times"


def test_the_seed_decides() -> None:
    first, again, other = (generate_realtime(toy_model(), PROMPTS[:1], [seed], SAMPLED)[0].rows for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_rows_are_those_of_training() -> None:
    ended = 0
    for prompt, text in ((PROMPTS[0], TEXT), (PROMPTS[1], "Hi."), (PROMPTS[3], "star key")):
        for seed in range(4):
            result = generate_realtime(toy_model(), [prompt], [seed], SAMPLED)[0]
            if result.stop_reason is not StopReason.end or not result.segments:
                continue
            ended += 1
            header = toy_layout().open_turn_rows("assistant", True)
            turn = toy_layout().turn_rows(Turn(role="assistant", text=text, codes=codes_of(result)), True)
            assert torch.equal(spoken_rows(toy_config(), prompt.text_ids, codes_of(result)), turn[len(header) :])
            assert torch.equal(result.rows, turn[len(header) :][: len(result.rows)])
    assert ended > 3


def test_greedy_frames_are_what_one_pass_over_the_rows_predicts() -> None:
    config = replace(ENDLESS, audio=SamplerConfig(temperature=0.0), max_frames=12)
    model, prompt = toy_model(), PROMPTS[2]
    result = generate_realtime(model, [prompt], [0], config)[0]
    frames = codes_of(result)
    assert len(frames) > 3
    with torch.no_grad():
        hidden = model(torch.cat([prompt.rows, result.rows]).unsqueeze(0)).hidden[0]
    first = len(prompt.rows) + toy_config().text_lead - 1
    drawn = FrameSampler(model, config, [0] * len(frames)).draw(hidden[first : first + len(frames)])
    assert torch.equal(drawn, frames)


def test_only_codes_are_drawn_and_the_end_in_the_first_codebook_alone() -> None:
    config, size = replace(SAMPLED, audio=SamplerConfig(temperature=5.0)), toy_config().codebook_size
    reference = replace(config, compatibility=Compatibility.reference)
    hidden = torch.randn(200, toy_config().hidden_size, generator=torch.Generator().manual_seed(0))
    drawn = FrameSampler(toy_model(), config, range(200)).draw(hidden)
    ends = drawn[:, 0] == toy_config().eos_code
    assert ends.any()
    assert (drawn[~ends] < size).all()
    assert (drawn[ends][:, 1:] == size).all()
    free = FrameSampler(toy_model(), reference, range(200)).draw(hidden)
    assert (free[:, 1:] > size).any()
    assert (free[:, 0] == size).any()


def test_in_reference_mode_sound_stops_at_the_first_row_that_is_no_code() -> None:
    config = replace(SAMPLED, compatibility=Compatibility.reference, audio=SamplerConfig(temperature=5.0))
    results = generate_realtime(toy_model(), PROMPTS * 4, range(16), config)
    cut = 0
    for result, prompt in zip(results, PROMPTS * 4, strict=True):
        frames = result.rows[min(len(prompt.text_ids), toy_config().text_lead) :, 1:]
        sound = codes_of(result) if result.segments else frames[:0]
        assert (sound < toy_config().codebook_size).all()
        cut += len(sound) < len(frames) - (result.stop_reason is StopReason.end)
    assert cut > 0


def test_penalty_looks_at_the_last_frames_of_its_own_sample_and_codebook() -> None:
    model = toy_model()
    hidden = torch.randn(2, toy_config().hidden_size, generator=torch.Generator().manual_seed(1)).repeat(2, 1)
    greedy = SamplerConfig(temperature=0.0, repetition_penalty=1e6, penalty_window=2)
    sampler = FrameSampler(model, replace(SAMPLED, audio=greedy), [0] * 4)
    frames = [sampler.draw(hidden) for _ in range(4)]
    assert torch.equal(
        frames[0], FrameSampler(model, replace(SAMPLED, audio=SamplerConfig(temperature=0.0)), [0] * 4).draw(hidden)
    )
    assert not (frames[1][:, 0] == frames[0][:, 0]).any()
    assert not (frames[2][:, 0] == frames[0][:, 0]).any()
    # The third frame's window has moved past the first, whose code is the most likely again.
    assert torch.equal(frames[3][:, 0], frames[0][:, 0])
    unlimited = FrameSampler(model, replace(SAMPLED, audio=replace(greedy, penalty_window=0)), [0] * 4)
    whole = [unlimited.draw(hidden) for _ in range(4)]
    assert not (whole[3][:, 0] == whole[0][:, 0]).any()


def test_each_codebook_has_its_sampler() -> None:
    hidden = torch.randn(1, toy_config().hidden_size, generator=torch.Generator().manual_seed(2)).repeat(64, 1)
    hot = replace(SAMPLED, codebooks=[SamplerConfig(temperature=temperature) for temperature in (0.0, 9.0, 9.0)])
    drawn = FrameSampler(toy_model(), hot, range(64)).draw(hidden)
    assert len(drawn[:, 0].unique()) == 1
    assert len(drawn[:, 1].unique()) > 4
    heavy = SamplerConfig(temperature=0.0, repetition_penalty=1e6)
    own = [SamplerConfig(temperature=0.0), heavy, replace(heavy, penalty_window=1)]
    sampler = FrameSampler(toy_model(), replace(SAMPLED, codebooks=own), range(64))
    first, second, third = (sampler.draw(hidden)[0] for _ in range(3))
    assert first[0] == second[0] == third[0]
    assert len({int(frame[1]) for frame in (first, second, third)}) == 3
    assert second[2] not in (first[2], third[2])
    with pytest.raises(GenerationError, match="codebooks: expected 3 samplers.* got 2"):
        FrameSampler(toy_model(), replace(SAMPLED, codebooks=own[:2]), [0])


def test_fewer_codebooks_are_refused() -> None:
    with pytest.raises(GenerationError, match=r"num_codebooks: this model speaks all of its 3 codebooks, got 2"):
        FrameSampler(toy_model(), replace(SAMPLED, num_codebooks=2), [0])


def test_max_frames_of_each_prompt_and_the_callback() -> None:
    config, heard = replace(ENDLESS, audio=SamplerConfig(temperature=0.0)), {0: [], 2: []}
    results = generate_realtime(
        toy_model(),
        [PROMPTS[0], PROMPTS[2], PROMPTS[2]],
        [0, 1, 2],
        config,
        max_frames=[2, 1, 4],
        on_frames=lambda index, codes: heard.setdefault(index, []).append(codes),
    )
    assert [len(codes_of(result)) for result in results] == [2, 1, 4]
    assert {result.stop_reason for result in results} == {StopReason.max_frames}
    assert torch.equal(torch.cat(heard[0]), codes_of(results[0]))
    assert [codes.shape for codes in heard[2]] == [(1, 3)] * 4


def test_should_stop_cancels_what_is_unfinished() -> None:
    asked = []
    results = generate_realtime(
        toy_model(),
        PROMPTS,
        SEEDS,
        SAMPLED,
        max_frames=[1, 9, 9, 9],
        should_stop=lambda: asked.append(0) or len(asked) > 2,
    )
    assert results[0].stop_reason in (StopReason.max_frames, StopReason.end)
    assert StopReason.cancelled in {result.stop_reason for result in results[1:]}
    assert all(len(result.rows) <= toy_config().text_lead + 3 for result in results)


def test_runaway_is_stopped() -> None:
    # Enough of a penalty in reverse makes the model say one frame for ever.
    stuck = SamplerConfig(temperature=0.0, repetition_penalty=1e-6, penalty_window=1)
    config = GenerationConfig(audio=stuck, max_frames=200, runaway_repeats=6)
    result = generate_realtime(toy_model(), PROMPTS[:1], [0], config)[0]
    assert result.stop_reason is StopReason.runaway
    assert len(codes_of(result)) < 100


def test_an_early_end_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    long = prompt_of(TEXT)
    with caplog.at_level(logging.WARNING):
        result = generate_realtime(toy_model(), [long], [1], replace(SAMPLED, audio=SamplerConfig(temperature=5.0)))[0]
    assert result.stop_reason is StopReason.end
    left = len(long.text_ids) - toy_config().text_lead - (len(codes_of(result)) if result.segments else 0)
    assert left > 0
    assert f"{left} of {len(long.text_ids)} text tokens early" in caplog.text


def test_prefill_pads_in_front() -> None:
    rows, mask = prefill_batch(toy_config(), PROMPTS[:2])
    lengths = [len(p.rows) + min(len(p.text_ids), toy_config().text_lead) for p in PROMPTS[:2]]
    assert mask.sum(1).tolist() == lengths
    assert (rows[:, -1, 1] == toy_config().bos_code).all()
    assert (rows[1, : int(mask.shape[1] - lengths[1]), 0] == toy_config().pad_token_id).all()


def test_bad_prompts() -> None:
    empty = RealtimePrompt(rows=PROMPTS[0].rows, text_ids=[])
    with pytest.raises(GenerationError, match="prompt 1: the text is empty"):
        generate_realtime(toy_model(), [PROMPTS[0], empty], [0, 0], SAMPLED)
    with pytest.raises(GenerationError, match=r"prompt 0: \d+ positions and 400 frames overrun the model's 400"):
        generate_realtime(toy_model(), PROMPTS[:1], [0], SAMPLED, max_frames=[400])
