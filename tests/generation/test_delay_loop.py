"""The decode loop emits what training looks like, and a request's result is its own."""

import pytest
import torch
from torch import Tensor

from moss.config.generation import Attention, Compatibility, GenerationConfig, Offload, SamplerConfig
from moss.errors import GenerationError
from moss.generation.delay_loop import generate_delay
from moss.generation.loop import Generated, StopReason, generate
from moss.model.build import build_model
from moss.model.delay import DelayModel
from moss.sequence.layout import DelayLayout
from moss.sequence.prompt import PromptMode, UserPrompt
from tests.generation.toy import codes_for, geometry, layout_of, learnt_by_heart

GREEDY = SamplerConfig(temperature=0.0)
PROMPT = UserPrompt(text="one two three", language="English")


@pytest.fixture(scope="module", params=[1, 2, 4])
def learnt(request: pytest.FixtureRequest) -> tuple[DelayModel, DelayLayout, Tensor]:
    """A model that says one sentence, its layout, and the codes of that sentence."""
    config = geometry(request.param)
    codes = codes_for("one two three", request.param)
    return learnt_by_heart(config, [(PROMPT, codes)]), layout_of(config), codes


def speak(model: DelayModel, prompt: Tensor, **settings: object) -> Generated:
    config = GenerationConfig(text=GREEDY, audio=GREEDY, **{"max_frames": 30, **settings})  # type: ignore[arg-type]
    return generate(model, [prompt], [0], config)[0]


def test_rows_are_those_of_training(learnt: tuple[DelayModel, DelayLayout, Tensor]) -> None:
    model, layout, codes = learnt
    prompt = layout.conversation(PROMPT)
    decoded = speak(model, prompt)
    assert decoded.stop_reason is StopReason.end
    assert decoded.num_given == 0
    # Everything up to the end of the turn; the newline after it is never generated.
    trained = layout.conversation(PROMPT, [codes], PromptMode.loss)[len(prompt) : -1]
    assert torch.equal(decoded.rows, trained)
    assert decoded.rows[:, 0].tolist().count(layout.special.delay_slot) == layout.num_codebooks - 1
    (segment,) = decoded.segments
    assert torch.equal(segment.codes, codes)
    assert segment.num_given == 0


def test_continuation_goes_on_where_it_was_cut(learnt: tuple[DelayModel, DelayLayout, Tensor]) -> None:
    model, layout, codes = learnt
    prompt = layout.conversation(PROMPT, [codes[:4]], PromptMode.continuation)
    decoded = speak(model, prompt)
    assert decoded.stop_reason is StopReason.end
    assert decoded.num_given == 1 + 4
    (segment,) = decoded.segments
    assert torch.equal(segment.codes, codes)
    assert segment.num_given == 4


def test_a_turn_begins_where_the_prompt_ends_however_long_its_header(
    learnt: tuple[DelayModel, DelayLayout, Tensor],
) -> None:
    model, layout, codes = learnt
    prompt = layout.conversation(PROMPT)
    assert speak(model, torch.cat([prompt, prompt[-1:], prompt[-1:]]), max_frames=2).num_given == 0
    going_on = layout.conversation(PROMPT, [codes[:4]], PromptMode.continuation)
    start = len(going_on) - 5
    longer = torch.cat([going_on[:start], going_on[start - 1 : start], going_on[start:]])
    made = speak(model, longer, max_frames=2)
    assert made.num_given == 1 + 4
    assert int(made.rows[0, 0]) == layout.special.audio_start


def test_the_published_loop_closes_with_one_slot_more(learnt: tuple[DelayModel, DelayLayout, Tensor]) -> None:
    model, layout, _ = learnt
    if layout.num_codebooks == 1:
        # One codebook has no delay to close: the published loop is never asked for one.
        assert layout.special.delay_slot not in speak(model, layout.conversation(PROMPT)).rows[:, 0]
        return
    rows = speak(model, layout.conversation(PROMPT), compatibility=Compatibility.reference).rows
    assert rows[:, 0].tolist().count(layout.special.delay_slot) == layout.num_codebooks


def test_a_limit_of_frames_is_exact(learnt: tuple[DelayModel, DelayLayout, Tensor]) -> None:
    model, layout, codes = learnt
    prompt = layout.conversation(PROMPT)
    for limit in (1, 2, len(codes) - 1):
        cut = speak(model, prompt, max_frames=limit)
        assert cut.stop_reason is StopReason.max_frames
        (segment,) = cut.segments
        assert torch.equal(segment.codes, codes[:limit])
    # As many frames as the model wants are no cut.
    whole = speak(model, prompt, max_frames=len(codes))
    assert whole.stop_reason is StopReason.end
    assert torch.equal(whole.segments[0].codes, codes)


def test_limits_are_each_requests_own(learnt: tuple[DelayModel, DelayLayout, Tensor]) -> None:
    model, layout, codes = learnt
    config = GenerationConfig(text=GREEDY, audio=GREEDY)
    prompts = [layout.conversation(PROMPT)] * 3
    made = generate(model, prompts, [0, 0, 0], config, max_frames=[2, 30, 3])
    assert [len(one.segments[0].codes) for one in made] == [2, len(codes), 3]
    with pytest.raises(GenerationError, match="request 1: max_frames must be at least 1, got 0"):
        generate(model, prompts[:2], [0, 0], config, max_frames=[2, 0])


def test_a_limit_of_rows_counts_as_published(learnt: tuple[DelayModel, DelayLayout, Tensor]) -> None:
    model, layout, codes = learnt
    config = GenerationConfig(text=GREEDY, audio=GREEDY)
    (decoded,) = generate_delay(model, [layout.conversation(PROMPT)], [0], config, max_rows=len(codes))
    assert decoded.stop_reason is StopReason.max_frames
    assert len(decoded.rows) == len(codes)
    (segment,) = decoded.segments
    assert torch.equal(segment.codes, codes[: len(codes) - layout.num_codebooks])


def test_frames_are_handed_over_as_they_come(learnt: tuple[DelayModel, DelayLayout, Tensor]) -> None:
    model, layout, codes = learnt
    config = GenerationConfig(text=GREEDY, audio=GREEDY, max_frames=30)
    prompts = [layout.conversation(PROMPT), layout.conversation(PROMPT, [codes[:4]], PromptMode.continuation)]
    frames: list[list[Tensor]] = [[], []]
    steps = []

    def should_stop() -> bool:
        steps.append([len(part) for part in frames])
        return False

    made = generate(
        model,
        prompts,
        [0, 1],
        config,
        on_frames=lambda index, part: frames[index].append(part),
        should_stop=should_stop,
    )
    for one, parts in zip(made, frames, strict=True):
        (segment,) = one.segments
        assert torch.equal(torch.cat(parts), segment.codes[segment.num_given :])
    # The first frame is complete N - 1 rows after its first code, which follows the start.
    assert [counts[0] for counts in steps].index(1) == 1 + layout.num_codebooks


def test_cancelling_keeps_what_there_is(learnt: tuple[DelayModel, DelayLayout, Tensor]) -> None:
    model, layout, codes = learnt
    got: list[Tensor] = []
    config = GenerationConfig(text=GREEDY, audio=GREEDY, max_frames=30)
    (made,) = generate(
        model,
        [layout.conversation(PROMPT)],
        [0],
        config,
        on_frames=lambda _, part: got.append(part),
        should_stop=lambda: len(got) == 3,
    )
    assert made.stop_reason is StopReason.cancelled
    assert torch.equal(made.segments[0].codes, codes[:3])


def test_fused_and_plain_weights_speak_the_same(
    learnt: tuple[DelayModel, DelayLayout, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, layout, _ = learnt
    plain = build_model(model.config)
    plain.load_state_dict(model.state_dict())
    fused = speak(model, layout.conversation(PROMPT))
    assert isinstance(plain, DelayModel)
    monkeypatch.setattr(DelayModel, "fuse_", lambda self: None)
    assert torch.equal(speak(plain.eval(), layout.conversation(PROMPT)).rows, fused.rows)


@pytest.mark.parametrize("setting", [{"offload": Offload.cpu}, {"attention": Attention.eager}])
def test_kernels_and_places_change_nothing(
    learnt: tuple[DelayModel, DelayLayout, Tensor], setting: dict[str, object]
) -> None:
    model, layout, _ = learnt
    prompt = layout.conversation(PROMPT)
    assert torch.equal(speak(model, prompt, **setting).rows, speak(model, prompt).rows)


def restless(num_codebooks: int = 4) -> tuple[DelayModel, DelayLayout]:
    """An untrained model that has audio and its end within reach."""
    torch.manual_seed(1)
    config = geometry(num_codebooks)
    model, layout = build_model(config).eval(), layout_of(config)
    assert isinstance(model, DelayModel)
    special = config.special_tokens
    with torch.no_grad():
        head = model.head_weight(0)
        # Start and end have large logits of either sign at random, going on and closing are as likely.
        head *= 0.1
        head[[special.audio_start, special.im_end]] *= 100
    return model, layout


@pytest.mark.parametrize("temperature", [0.0, 1.3])
@pytest.mark.parametrize("penalty", [1.0, 1.5])
@pytest.mark.parametrize("window", [0, 3])
def test_neighbours_have_no_say(temperature: float, penalty: float, window: int) -> None:
    model, layout = restless()
    reference = codes_for("a b c", 4)
    prompts = [
        layout.conversation(UserPrompt(text=text, reference=given))
        for text, given in [("hi", None), ("the longest of these texts by far", [reference]), ("two words", None)]
    ]
    seeds = [11, 12, 14]
    sampler = SamplerConfig(
        temperature=temperature, repetition_penalty=penalty, penalty_window=window, top_k=9, top_p=0.9
    )
    settings = GenerationConfig(text=sampler, audio=sampler, max_frames=20)
    together = generate(model, prompts, seeds, settings)
    alone = [generate(model, [prompt], [seed], settings)[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    swapped = generate(model, prompts[::-1], seeds[::-1], settings)[::-1]
    for one, other, third in zip(together, alone, swapped, strict=True):
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.rows, third.rows)
        assert one.stop_reason is other.stop_reason
    if temperature > 0:
        assert len({len(one.rows) for one in together}) > 1, "they must end at different times to test anything"
        other_seed = generate(model, prompts[:1], [99], settings)[0]
        assert not torch.equal(other_seed.rows, alone[0].rows)


def test_several_blocks_are_streamed_too() -> None:
    model, layout = restless()
    with torch.no_grad():
        model.head_weight(0)[layout.special.im_end] = 0
    sampler = SamplerConfig(temperature=1.0, top_k=9)
    frames: list[Tensor] = []
    settings = GenerationConfig(text=sampler, audio=sampler, max_frames=40)
    (made,) = generate(
        model, [layout.conversation(PROMPT)], [3], settings, on_frames=lambda _, part: frames.append(part)
    )
    assert len(made.segments) > 1
    assert torch.equal(torch.cat(frames), torch.cat([segment.codes for segment in made.segments]))


def test_each_codebook_has_its_temperature() -> None:
    model, layout = restless()
    prompt = layout.conversation(PROMPT, [codes_for("one two three", 4)], PromptMode.continuation)

    def spoken(seed: int, temperatures: list[float]) -> Tensor:
        own = [SamplerConfig(temperature=temperature) for temperature in temperatures]
        settings = GenerationConfig(text=GREEDY, codebooks=own, max_frames=6)
        return generate_delay(model, [prompt], [seed], settings, max_rows=6)[0].rows[-6:]

    cold = spoken(0, [0.0, 0.0, 0.0, 0.0])
    assert torch.equal(cold, spoken(1, [0.0, 0.0, 0.0, 0.0]))
    warm = [spoken(seed, [0.0, 0.0, 0.0, 5.0]) for seed in range(4)]
    # What one row draws reaches the other codebooks only through the next.
    assert all(torch.equal(rows[0, :4], cold[0, :4]) for rows in warm)
    assert len({int(rows[0, 4]) for rows in warm}) > 1
    with pytest.raises(GenerationError, match="codebooks: expected 4 samplers, one for each codebook that is spoken"):
        spoken(0, [1.0])


@pytest.mark.parametrize("compatibility", Compatibility)
def test_each_codebook_has_its_sampler(compatibility: Compatibility) -> None:
    model, layout = restless()
    prompt = layout.conversation(PROMPT, [codes_for("one two three", 4)], PromptMode.continuation)
    base = SamplerConfig(temperature=1.3)
    own = [
        SamplerConfig(temperature=3.0, top_k=4, repetition_penalty=1.4),
        SamplerConfig(temperature=2.0, top_p=0.4),
        SamplerConfig(temperature=3.0, top_k=4, repetition_penalty=1.4, penalty_window=2),
        base,
    ]

    def first_row(**settings: object) -> Tensor:
        config = GenerationConfig(text=GREEDY, compatibility=compatibility, max_frames=9, **settings)  # type: ignore[arg-type]
        return torch.stack(
            [made.rows[-1] for made in generate_delay(model, [prompt] * 3, [1, 2, 3], config, max_rows=1)]
        )

    mixed = first_row(codebooks=own)
    for codebook, sampler in enumerate(own):
        assert torch.equal(mixed[:, 1 + codebook], first_row(audio=sampler)[:, 1 + codebook])
        if sampler != base:
            assert not torch.equal(mixed[:, 1 + codebook], first_row(audio=base)[:, 1 + codebook])


def test_equal_samplers_are_as_one() -> None:
    model, layout = restless()
    one = SamplerConfig(temperature=1.3, top_k=9, top_p=0.9, repetition_penalty=1.5, penalty_window=3)
    prompts, plain = [layout.conversation(PROMPT)] * 2, GenerationConfig(text=one, audio=one, max_frames=20)
    each = GenerationConfig(text=one, codebooks=[one] * 4, max_frames=20)
    for mine, other in zip(
        generate(model, prompts, [1, 2], each), generate(model, prompts, [1, 2], plain), strict=True
    ):
        assert torch.equal(mine.rows, other.rows)


def test_a_model_that_repeats_itself_is_stopped() -> None:
    model, layout = restless()
    with torch.no_grad():
        # Nothing reaches the heads: code 0, and one slot more, for ever.
        model.backbone.norm.weight.zero_()
    prompt = layout.conversation(PROMPT, [codes_for("one two three", 4)], PromptMode.continuation)
    made = speak(model, prompt, max_frames=100, runaway_repeats=20)
    assert made.stop_reason is StopReason.runaway
    (segment,) = made.segments
    assert 20 <= len(segment.codes) - segment.num_given <= 20 + 8
    assert speak(model, prompt, max_frames=50, runaway_repeats=0).stop_reason is StopReason.max_frames


def test_fewer_codebooks_are_for_others() -> None:
    model, layout = restless()
    with pytest.raises(GenerationError, match="num_codebooks=2: a Delay model speaks all its 4 codebooks at once"):
        speak(model, layout.conversation(PROMPT), num_codebooks=2)


def test_overrun_is_an_error() -> None:
    config = geometry(2)
    prompt = layout_of(config).conversation(PROMPT)
    message = rf"a prompt of {len(prompt)} positions and 184 new ones overrun the model's 200; shorten the text or"
    with pytest.raises(GenerationError, match=message):
        generate(build_model(config).eval(), [prompt], [0], GenerationConfig(max_frames=180))
