"""The decode loop emits what training looks like, and a request's result is its own."""

import pytest
import torch
from torch import Tensor

from moss.config.generation import Compatibility, GenerationConfig, SamplerConfig
from moss.errors import GenerationError
from moss.generation.delay_codes import audio_segments
from moss.generation.delay_loop import Decoded, generate_delay
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


def speak(model: DelayModel, prompt: Tensor, **settings: object) -> Decoded:
    config = GenerationConfig(text=GREEDY, audio=GREEDY, **{"max_frames": 30, **settings})  # type: ignore[arg-type]
    return generate_delay(model, [prompt], [0], config)[0]


def test_rows_are_those_of_training(learnt: tuple[DelayModel, DelayLayout, Tensor]) -> None:
    model, layout, codes = learnt
    prompt = layout.conversation(PROMPT)
    decoded = speak(model, prompt)
    assert decoded.ended
    assert decoded.num_given == 0
    # Everything up to the end of the turn; the newline after it is never generated.
    trained = layout.conversation(PROMPT, [codes], PromptMode.loss)[len(prompt) : -1]
    assert torch.equal(decoded.rows, trained)
    assert int((decoded.rows[:, 0] == layout.special.delay_slot).sum()) == layout.num_codebooks - 1
    (segment,) = audio_segments(decoded.rows, decoded.num_given, layout.pad_code, Compatibility.none)
    assert torch.equal(segment.codes, codes)
    assert segment.num_given == 0


def test_continuation_goes_on_where_it_was_cut(learnt: tuple[DelayModel, DelayLayout, Tensor]) -> None:
    model, layout, codes = learnt
    prompt = layout.conversation(PROMPT, [codes[:4]], PromptMode.continuation)
    decoded = speak(model, prompt)
    assert decoded.ended
    assert decoded.num_given == 1 + 4
    (segment,) = audio_segments(decoded.rows, decoded.num_given, layout.pad_code, Compatibility.none)
    assert torch.equal(segment.codes, codes)
    assert segment.num_given == 4


def test_the_published_loop_closes_with_one_slot_more(learnt: tuple[DelayModel, DelayLayout, Tensor]) -> None:
    model, layout, _ = learnt
    if layout.num_codebooks == 1:
        # One codebook has no delay to close: the published loop is never asked for one.
        assert layout.special.delay_slot not in speak(model, layout.conversation(PROMPT)).rows[:, 0]
        return
    rows = speak(model, layout.conversation(PROMPT), compatibility=Compatibility.reference).rows
    assert int((rows[:, 0] == layout.special.delay_slot).sum()) == layout.num_codebooks


def test_budget_ends_an_unfinished_turn(learnt: tuple[DelayModel, DelayLayout, Tensor]) -> None:
    model, layout, codes = learnt
    config = GenerationConfig(text=GREEDY, audio=GREEDY)
    (decoded,) = generate_delay(model, [layout.conversation(PROMPT)], [0], config, max_new_positions=len(codes))
    assert not decoded.ended
    assert len(decoded.rows) == len(codes)
    (segment,) = audio_segments(decoded.rows, 0, layout.pad_code, Compatibility.none)
    assert torch.equal(segment.codes, codes[: len(codes) - layout.num_codebooks])


@pytest.mark.parametrize("temperature", [0.0, 1.3])
@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_neighbours_have_no_say(temperature: float, penalty: float) -> None:
    torch.manual_seed(1)
    config = geometry(4)
    model, layout = build_model(config).eval(), layout_of(config)
    # Bring audio and its end within reach of an untrained model.
    special = config.special_tokens
    with torch.no_grad():
        head = model.lm_heads[0].weight
        head[[special.audio_start, special.gen_slot, special.delay_slot, special.im_end]] *= 4
    reference = codes_for("a b c", 4)
    prompts = [
        layout.conversation(UserPrompt(text=text, reference=given))
        for text, given in [("hi", None), ("the longest of these texts by far", [reference]), ("two words", None)]
    ]
    seeds = [11, 12, 13]
    sampler = SamplerConfig(temperature=temperature, repetition_penalty=penalty)
    settings = GenerationConfig(text=sampler, audio=sampler, max_frames=20)
    together = generate_delay(model, prompts, seeds, settings)
    alone = [generate_delay(model, [prompt], [seed], settings)[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    swapped = generate_delay(model, prompts[::-1], seeds[::-1], settings)[::-1]
    for one, other, third in zip(together, alone, swapped, strict=True):
        length = min(len(one.rows), len(other.rows))
        assert torch.equal(one.rows[:length], other.rows[:length])
        assert torch.equal(one.rows, third.rows)
        assert one.ended == other.ended
        # What follows the end in a batch is padding.
        assert (one.rows[length:, 0] == special.pad).all()
    if temperature > 0:
        other_seed = generate_delay(model, prompts[:1], [99], settings)[0]
        assert not torch.equal(other_seed.rows, alone[0].rows)


def test_overrun_is_an_error() -> None:
    config = geometry(2)
    prompt = layout_of(config).conversation(PROMPT)
    message = rf"a prompt of {len(prompt)} positions and 184 new ones overrun the model's 200; shorten the text or"
    with pytest.raises(GenerationError, match=message):
        generate_delay(build_model(config).eval(), [prompt], [0], GenerationConfig(max_frames=180))
