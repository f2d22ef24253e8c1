"""The decode loop of both Local versions: a request's result is its own, and settings do what they say."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from moss.config.compose import load_config
from moss.config.generation import Attention, Compatibility, GenerationConfig, Offload, SamplerConfig
from moss.config.model import LocalModelConfig, LocalV15ModelConfig
from moss.config.train import TrainConfig
from moss.errors import GenerationError
from moss.generation import sampling
from moss.generation.loop import Generated, StopReason, generate
from moss.model.build import build_model
from moss.model.interface import Generator

GREEDY = SamplerConfig(temperature=0.0)
SIZES = {
    "num_codebooks": 4,
    "codebook_size": 16,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "intermediate_size": 64,
    "initializer_range": 0.1,
    "max_positions": 200,
    "depth_intermediate_size": 48,
}


@pytest.fixture(scope="module", params=["local", "local_v15"])
def model(request: pytest.FixtureRequest) -> Generator:
    """Random weights; going on and ending are as likely, and greedy decoding goes on."""
    torch.manual_seed(3)
    config: Any = load_config(TrainConfig, "train", [f"model={request.param}_xs"]).model
    own = {"depth_num_heads": 2} if request.param == "local_v15" else {"depth_hidden_size": 24, "depth_mlp_size": 20}
    made = build_model(replace(config, **SIZES, **own, depth_num_layers=2)).eval()
    with torch.no_grad():
        head = made.head_weight(0)
        go, end = (0, 1) if len(head) == 2 else (config.audio_assistant_gen_slot_token_id, config.audio_end_token_id)
        # Equal to the last bit: of equal logits greedy decoding takes the first.
        head[[go, end]] = 0
    return made


def made_prompts(model: Generator, given: int = 0) -> list[Tensor]:
    """Three prompts of unequal length, each carrying on `given` frames."""
    config = model.config
    assert isinstance(config, LocalModelConfig | LocalV15ModelConfig)
    special, made = config.special_tokens, []
    assert special.gen_slot is not None
    assert special.audio_start is not None
    random = torch.Generator().manual_seed(7)
    for length in (3, 9, 5):
        text = torch.randint(0, 200, (length,), generator=random).tolist()
        column = [special.im_start, *text, special.im_end, special.audio_start] + [special.gen_slot] * given
        rows = torch.full((len(column), 1 + config.num_codebooks), config.codebook_size)
        rows[:, 0] = torch.tensor(column)
        if given:
            codes = torch.randint(0, config.codebook_size, (given, config.num_codebooks), generator=random)
            rows[-given:, 1:] = codes
        made.append(rows)
    return made


def speak(model: Generator, prompts: list[Tensor], seeds: list[int] | None = None, **settings: Any) -> list[Generated]:
    values: dict[str, Any] = {"text": GREEDY, "audio": GREEDY, "max_frames": 8}
    config = GenerationConfig(**values | settings)
    return generate(model, prompts, seeds or list(range(len(prompts))), config)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize(("penalty", "window"), [(1.0, 0), (1.4, 0), (1.4, 3)])
def test_neighbours_have_no_say(model: Generator, temperature: float, penalty: float, window: int) -> None:
    sampler = SamplerConfig(
        temperature=temperature, repetition_penalty=penalty, penalty_window=window, top_k=9, top_p=0.9
    )
    prompts, settings = made_prompts(model), {"text": SamplerConfig(), "audio": sampler, "max_frames": 30}
    together = speak(model, prompts, [1, 2, 3], **settings)
    assert len({len(one.rows) for one in together}) > 1, "they must end at different times to test anything"
    swapped = speak(model, prompts[::-1], [3, 2, 1], **settings)[::-1]
    for index, (one, other) in enumerate(zip(together, swapped, strict=True)):
        (alone,) = speak(model, [prompts[index]], [1 + index], **settings)
        assert torch.equal(one.rows, alone.rows)
        assert torch.equal(one.rows, other.rows)
        assert one.stop_reason is alone.stop_reason
    if temperature > 0:
        different = speak(model, prompts, [99, 98, 97], **settings)
        assert any(not torch.equal(one.rows, other.rows) for one, other in zip(different, together, strict=True))


def uncached(model: Generator, prompt: Tensor, num_frames: int, num_codebooks: int) -> Tensor:
    """Greedy frames of the plain modules: no buffers, everything anew for each frame."""
    rows, slot = prompt.clone(), model.config.special_tokens.gen_slot  # type: ignore[attr-defined]
    plain = build_model(model.config).eval()
    plain.load_state_dict(model.state_dict())
    with torch.inference_mode():
        for _ in range(num_frames):
            embedded = plain.embed(rows[None], num_codebooks)
            frame = plain.begin_frame(plain.backbone(inputs_embeds=embedded)[0][:, -1], num_codebooks)
            row = torch.full_like(rows[0], 0)
            row[0] = slot
            frame.feed(0, row[:1])
            for codebook in range(num_codebooks):
                row[codebook + 1] = frame.logits(codebook + 1)[0, : model.config.codebook_size].argmax()
                frame.feed(codebook + 1, row[codebook + 1 : codebook + 2])
            rows = torch.cat([rows, row[None]])
    return rows[len(prompt) :, 1 : 1 + num_codebooks]


@pytest.mark.parametrize("num_codebooks", [1, 2, 4])
@pytest.mark.parametrize("given", [0, 3])
def test_buffers_and_fused_weights_change_nothing(model: Generator, num_codebooks: int, given: int) -> None:
    prompts = made_prompts(model, given)
    for prompt, made in zip(prompts, speak(model, prompts, num_codebooks=num_codebooks), strict=True):
        (segment,) = made.segments
        assert segment.codes.shape[1] == num_codebooks
        assert segment.num_given == given
        assert made.num_given == 1 + given
        new = segment.codes[given:]
        assert torch.equal(new, uncached(model, prompt, len(new), num_codebooks))
        assert torch.equal(segment.codes[:given], prompt[len(prompt) - given :, 1 : 1 + num_codebooks])


@pytest.mark.parametrize("setting", [{"offload": Offload.cpu}, {"attention": Attention.eager}])
def test_kernels_and_places_change_nothing(model: Generator, setting: dict[str, Any]) -> None:
    prompts = made_prompts(model)
    for one, other in zip(speak(model, prompts, **setting), speak(model, prompts), strict=True):
        assert torch.equal(one.rows, other.rows)


def test_how_a_turn_ends(model: Generator) -> None:
    special = model.config.special_tokens  # type: ignore[attr-defined]
    ended = speak(model, made_prompts(model), text=SamplerConfig(), max_frames=60)
    assert any(one.stop_reason is StopReason.end for one in ended)
    for one in ended:
        frames = len(one.segments[0].codes) if one.segments else 0
        first_version = isinstance(model.config, LocalModelConfig)
        ends = one.stop_reason is StopReason.end and first_version
        assert len(one.rows) == 1 + frames + ends
        if ends:
            assert one.rows[-1].tolist() == [special.audio_end] + [16] * 4
        spoken = one.rows[1 : 1 + frames]
        assert (spoken[:, 0] == special.gen_slot).all()
        assert (spoken[:, 1:] < 16).all()


def test_published_v1_turns_end_with_a_frame_too_many(model: Generator) -> None:
    prompts = made_prompts(model)
    made = speak(model, prompts, text=SamplerConfig(top_k=2), compatibility=Compatibility.reference, max_frames=60)
    for one in made:
        assert sum(len(segment.codes) for segment in one.segments) == len(one.rows) - 1
        if one.stop_reason is StopReason.end and isinstance(model.config, LocalModelConfig):
            assert int(one.rows[-1, 0]) == model.config.audio_end_token_id
            assert int(one.rows[-1, 1:].max()) < 16


def test_limits_are_each_requests_own(model: Generator) -> None:
    config = GenerationConfig(text=GREEDY, audio=GREEDY)
    made = generate(model, made_prompts(model), [0, 0, 0], config, max_frames=[2, 5, 1])
    assert [len(one.segments[0].codes) for one in made] == [2, 5, 1]
    assert all(one.stop_reason is StopReason.max_frames for one in made)


def test_frames_are_handed_over_as_they_come(model: Generator) -> None:
    frames: list[list[Tensor]] = [[], [], []]
    config = GenerationConfig(text=SamplerConfig(), audio=SamplerConfig(), max_frames=20)
    made = generate(
        model, made_prompts(model, 2), [1, 2, 3], config, on_frames=lambda index, part: frames[index].append(part)
    )
    for one, parts in zip(made, frames, strict=True):
        got = torch.cat(parts) if parts else torch.empty(0, 4, dtype=torch.long)
        want = one.segments[0].codes[2:] if one.segments else got[:0]
        assert torch.equal(got, want)
    assert sum(map(len, frames)) > 0


def test_cancelling_keeps_what_there_is(model: Generator) -> None:
    got: list[Tensor] = []
    (made,) = generate(
        model,
        made_prompts(model)[:1],
        [0],
        GenerationConfig(text=GREEDY, audio=GREEDY, max_frames=50),
        on_frames=lambda _, part: got.append(part),
        should_stop=lambda: len(got) == 3,
    )
    assert made.stop_reason is StopReason.cancelled
    assert torch.equal(made.segments[0].codes, torch.cat(got))
    assert len(got) == 3


def test_a_model_that_repeats_itself_is_stopped(model: Generator) -> None:
    prompts = made_prompts(model)[:1]
    weight = model.backbone.norm.weight.detach().clone()
    with torch.no_grad():
        model.backbone.norm.weight.zero_()
    try:
        made = speak(model, prompts, max_frames=100, runaway_repeats=20)[0]
        endless = speak(model, prompts, max_frames=50, runaway_repeats=0)[0]
    finally:
        with torch.no_grad():
            model.backbone.norm.weight.copy_(weight)
    assert made.stop_reason is StopReason.runaway
    assert 20 <= len(made.segments[0].codes) <= 20 + 8
    assert endless.stop_reason is StopReason.max_frames


def test_the_penalty_counts_what_is_carried_on(model: Generator) -> None:
    prompts = made_prompts(model, 3)
    heavy = SamplerConfig(temperature=0.0, repetition_penalty=1e6)
    default = speak(model, prompts, audio=heavy, max_frames=1)
    for prompt, one in zip(prompts, default, strict=True):
        given, new = prompt[-3:, 1:], one.segments[0].codes[-1]
        assert not (given == new).any()
    published = speak(model, prompts, audio=heavy, max_frames=1, compatibility=Compatibility.reference)
    plain = speak(model, prompts, max_frames=1, compatibility=Compatibility.reference)
    # v1 skips the penalty when greedy, v1.5 has generated nothing yet.
    assert all(torch.equal(a.rows, b.rows) for a, b in zip(published, plain, strict=True))


def test_each_codebook_has_its_temperature(model: Generator) -> None:
    prompts = made_prompts(model)[:1]
    own = [GREEDY] * 3 + [SamplerConfig(temperature=9.0)]
    rows = [speak(model, prompts, [seed], codebooks=own, max_frames=1)[0].rows[1] for seed in range(5)]
    assert len({tuple(row[:4].tolist()) for row in rows}) == 1
    assert len({int(row[4]) for row in rows}) > 1
    with pytest.raises(GenerationError, match="codebooks: expected 2 samplers, one for each codebook that is spoken"):
        speak(model, prompts, codebooks=own, num_codebooks=2)


def test_each_codebook_has_its_penalty_and_window(model: Generator) -> None:
    prompts = made_prompts(model)[:1]
    heavy = SamplerConfig(temperature=0.0, repetition_penalty=1e6)
    own = [GREEDY, heavy, replace(heavy, penalty_window=1), GREEDY]
    (made,) = speak(model, prompts, codebooks=own, max_frames=12)
    (segment,) = made.segments
    _, unlimited, windowed, _ = segment.codes.T
    assert len(unlimited) == len(unlimited.unique()) == 12, "no code comes back"
    assert (windowed[1:] != windowed[:-1]).all(), "no code follows itself"
    assert len(windowed.unique()) < 12, "but it may come back"
    (plain,) = speak(model, prompts, max_frames=12)
    # Before anything is spoken there is nothing to penalise.
    assert torch.equal(made.rows[1], plain.rows[1])


def test_numbers_are_hashed_only_to_be_drawn_with(model: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "uniforms", None)
    prompts = made_prompts(model)
    speak(model, prompts)
    with pytest.raises(TypeError):
        speak(model, prompts, codebooks=[GREEDY] * 3 + [SamplerConfig()])


def test_what_cannot_be(model: Generator) -> None:
    prompts = made_prompts(model)
    with pytest.raises(GenerationError, match="num_codebooks=5: the model has 4; ask for at most that many"):
        speak(model, prompts, num_codebooks=5)
    with pytest.raises(GenerationError, match="a prompt of 12 positions and 190 new ones overrun the model's 200"):
        speak(model, prompts, max_frames=189)
    with pytest.raises(GenerationError, match=r"request 1: the prompt has no start of audio \(id 1019\); lay it out"):
        speak(model, [prompts[0], prompts[1][:4]])
