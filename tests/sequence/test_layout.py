"""Conversations as positions: what stands where, and that a user's text is never structure."""

import dataclasses

import pytest
import torch
from torch import Tensor

from moss.config.model import (
    DelayModelConfig,
    LocalModelConfig,
    LocalV15ModelConfig,
    ModelConfig,
    RealtimeModelConfig,
    Template,
    TextTokenizerConfig,
    TextTokenizerKind,
)
from moss.data.text_tokenizer import TextTokenizer, build_text_tokenizer
from moss.errors import ConfigError, DataError
from moss.sequence.layout import (
    DelayLayout,
    Layout,
    LocalLayout,
    LocalV15Layout,
    RealtimeLayout,
    build_layout,
    left_pad,
)
from moss.sequence.prompt import (
    Codes,
    Control,
    Conversation,
    Message,
    Placeholder,
    PromptMode,
    Turn,
    UserPrompt,
    assistant_message,
    content_string,
    user_message,
)
from moss.sequence.templates import TEMPLATES
from moss.spec import IGNORE_LABEL, SpecialTokens

N = 4
SIZE = 10


@pytest.fixture(scope="module")
def bpe() -> TextTokenizer:
    return build_text_tokenizer(TextTokenizerConfig(kind=TextTokenizerKind.compact))


@pytest.fixture(scope="module")
def layout(bpe: TextTokenizer) -> DelayLayout:
    return DelayLayout(encode=bpe.encode, special=bpe.special_tokens, num_codebooks=N, codebook_size=SIZE)


def some_codes(frames: int, seed: int = 0) -> Tensor:
    return torch.randint(0, SIZE, (frames, N), generator=torch.Generator().manual_seed(seed))


def test_modes_share_the_prompt(layout: DelayLayout) -> None:
    prompt = UserPrompt(text="Hello there.", language="English", reference=[some_codes(2, 1), None, some_codes(3, 2)])
    codes = some_codes(5)
    opened = layout.conversation(prompt)
    whole = layout.conversation(prompt, [codes], PromptMode.loss)
    cut = layout.conversation(prompt, [codes], PromptMode.continuation)
    assert torch.equal(whole[: len(opened)], opened)
    assert torch.equal(whole[: len(cut)], cut)
    special = layout.special
    turn = whole[len(opened) :]
    newline = layout.encode("\n")
    slots = [special.gen_slot] * 5 + [special.delay_slot] * (N - 1)
    assert turn[:, 0].tolist() == [special.audio_start, *slots, special.audio_end, special.im_end, *newline]
    assert cut[-1, 0] == special.gen_slot
    assert len(cut) == len(opened) + 1 + 5
    for frame, codebook in torch.cartesian_prod(torch.arange(5), torch.arange(N)).tolist():
        assert turn[1 + frame + codebook, 1 + codebook] == codes[frame, codebook]


def test_codes_stand_at_audio_slots_only(layout: DelayLayout) -> None:
    rows = layout.conversation(UserPrompt(text="a", reference=[some_codes(3)]), [some_codes(4)], PromptMode.loss)
    special = layout.special
    slots = torch.isin(rows[:, 0], torch.tensor([special.user_slot, special.gen_slot, special.delay_slot]))
    assert (rows[~slots, 1:] == SIZE).all()
    assert (rows[slots, 1:] != SIZE).any(dim=1).all()
    assert int((rows[:, 1:] != SIZE).sum()) == (3 + 4) * N


@pytest.mark.parametrize(
    "text",
    ["<|im_end|>", "{language}", "{text}", "{0} {", "<|audio_start|><|audio_assistant_gen_slot|>", "</user_inst>"],
)
@pytest.mark.parametrize("kind", list(TextTokenizerKind)[:2])
def test_users_text_stays_text(kind: TextTokenizerKind, text: str) -> None:
    bpe = build_text_tokenizer(TextTokenizerConfig(kind=kind))
    layout = DelayLayout(encode=bpe.encode, special=bpe.special_tokens, num_codebooks=N, codebook_size=SIZE)
    message = user_message(UserPrompt(text=text, language="English", instruction=text))
    assert content_string(message).count(text) >= 2
    assert "- Language:\nEnglish\n" in content_string(message)
    ids = layout.conversation(UserPrompt(text=text, instruction=text))[:, 0]
    special = {getattr(layout.special, name): name for name in SpecialTokens.__slots__}
    found = [special[i] for i in ids.tolist() if i in special]
    assert found == ["im_start", "im_end", "im_start"]


def test_references_are_numbered_by_speaker() -> None:
    message = user_message(UserPrompt(text="a", reference=[None, some_codes(1), some_codes(2)]))
    shown = content_string(message)
    assert "- Reference(s):\n[S2]:\n<|audio|>\n[S3]:\n<|audio|>\n- Instruction:\nNone\n" in shown
    assert content_string(user_message(UserPrompt(text="a"))).startswith("<user_inst>\n- Reference(s):\nNone\n")


def test_neighbouring_texts_are_one_string() -> None:
    (only,) = user_message(UserPrompt(text="a")).segments
    assert isinstance(only, str)


def test_role_joins_a_leading_text(layout: DelayLayout) -> None:
    joined = layout.message_positions(Message(role="user", segments=["hi"]))[:, 0].tolist()
    assert joined[1:-2] == layout.encode("user\nhi")
    apart = layout.message_positions(Message(role="assistant", segments=[Control("audio_start"), "hi"]))[:, 0].tolist()
    assert apart[1:-2] == [*layout.encode("assistant\n"), layout.special.audio_start, *layout.encode("hi")]


def test_clips_that_follow_each_other_are_one_block() -> None:
    first, second = some_codes(2), some_codes(3, 1)
    (segment,) = assistant_message([first, second]).segments
    assert isinstance(segment, Codes)
    assert torch.equal(segment.codes, torch.cat([first, second]))


@pytest.mark.parametrize("clips", [[], [torch.zeros(0, N, dtype=torch.long)]])
def test_an_empty_turn_is_an_error(clips: list[Tensor]) -> None:
    with pytest.raises(DataError, match="an assistant turn needs at least one frame of codes in every clip"):
        assistant_message(clips)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(3, N + 1, dtype=torch.long), r"shape \(frames, 4\), got \(3, 5\); encode with as many codebooks"),
        (torch.zeros(3, dtype=torch.long), r"shape \(frames, 4\), got \(3,\)"),
        (torch.full((3, N), SIZE), r"codes range over 10\.\.10, outside \[0, 10\); were they made by another"),
        (torch.full((3, N), -1), r"codes range over -1\.\.-1"),
    ],
)
def test_codes_of_another_tokenizer(layout: DelayLayout, codes: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        layout.conversation(UserPrompt(text="a", reference=[codes]))


def test_modes_with_an_answer_need_codes(layout: DelayLayout) -> None:
    with pytest.raises(DataError, match="mode=loss needs the assistant's codes"):
        layout.conversation(UserPrompt(text="a"), mode=PromptMode.loss)


def test_left_pad() -> None:
    rows = [torch.ones(2, 3, dtype=torch.long), torch.full((4, 3), 2)]
    batch, mask = left_pad(rows, torch.tensor([7, 8, 9]))
    assert batch[0].tolist() == [[7, 8, 9], [7, 8, 9], [1, 1, 1], [1, 1, 1]]
    assert torch.equal(batch[1], rows[1])
    assert mask.tolist() == [[False, False, True, True], [True] * 4]


@pytest.mark.parametrize("frames", [1, 6])
@pytest.mark.parametrize("template", [Template.moss_tts_delay_v1, Template.moss_ttsd_v1])
def test_lengths_and_counts_without_codes(layout: DelayLayout, template: Template, frames: int) -> None:
    layout = dataclasses.replace(layout, template=TEMPLATES[template])
    prompt = UserPrompt(text="[S1]Hello.", reference=[some_codes(3), None], tokens=frames)
    inputs, labels = layout.example(prompt, some_codes(frames))
    assert len(inputs) == len(labels)
    counted = dataclasses.replace(prompt, reference=[Placeholder(3), None])
    assert layout.num_positions(counted, frames) == len(inputs)
    assert torch.equal((labels != IGNORE_LABEL).sum(0), layout.target_counts([frames]))


def test_dialogue_layout_names_the_speaker_without_a_clip(layout: DelayLayout) -> None:
    dialogue = dataclasses.replace(layout, template=TEMPLATES[Template.moss_ttsd_v1])
    prompt = UserPrompt(text="[S1]a[S2]b", reference=[None, some_codes(2)], scene="a room", tokens=9)
    rows = dialogue.conversation(prompt)
    start = rows[:, 0].tolist().index(layout.special.audio_start)
    before = "user\n<user_inst>\n- Reference(s):\n[S1]: None\n[S2]:\n"
    assert rows[1:start, 0].tolist() == layout.encode(before)
    after = rows[start + 2 + 2 + (N - 1) : len(rows), 0].tolist()
    ids = layout.encode(
        "\n- Instruction:\nNone\n- Tokens:\nNone\n- Quality:\nNone\n- Sound Event:\nNone\n- Ambient Sound:\nNone\n"
        "- Language:\nNone\n- Scene:\na room\n- Text:\n[S1]a[S2]b\n</user_inst>"
    )
    assert after[: len(ids)] == ids


LAYOUTS = [
    (DelayModelConfig(), DelayLayout),
    (DelayModelConfig(template=Template.moss_ttsd_v1), DelayLayout),
    (LocalModelConfig(), LocalLayout),
    (LocalV15ModelConfig(), LocalV15Layout),
    (RealtimeModelConfig(text_lead=7), RealtimeLayout),
]


@pytest.mark.parametrize(("config", "kind"), LAYOUTS)
def test_build_layout(bpe: TextTokenizer, config: ModelConfig, kind: type) -> None:
    layout = build_layout(config, bpe.encode)
    assert type(layout) is kind
    assert layout.template is TEMPLATES[config.template]
    assert (layout.num_codebooks, layout.codebook_size) == (config.num_codebooks, config.codebook_size)
    assert layout.pad_code == config.codebook_size
    assert layout.special == config.special_tokens  # type: ignore[attr-defined]
    assert layout.encode("a b") == bpe.encode("a b")
    if isinstance(layout, RealtimeLayout):
        assert layout.lead == 7


@pytest.mark.parametrize(("config", "kind"), LAYOUTS)
def test_a_long_list_of_layouts_agrees_on_the_interface(bpe: TextTokenizer, config: ModelConfig, kind: type) -> None:
    layout: Layout = build_layout(config, bpe.encode)
    codes = torch.zeros(3, config.num_codebooks, dtype=torch.long)
    realtime = kind is RealtimeLayout
    prompt = Conversation(turns=[Turn("assistant", "Hello.")]) if realtime else UserPrompt(text="Hello.")
    inputs, labels = layout.example(prompt, codes)
    assert len(inputs) == layout.num_positions(prompt, len(codes))
    assert torch.equal((labels != IGNORE_LABEL).sum(0), layout.target_counts([3]))
    assert (layout.target_counts([3], kept=[2])[3:] == 0).all()
    rows = layout.conversation(prompt, [codes], PromptMode.loss)
    assert torch.equal(rows[:-1], inputs)
    assert torch.equal(labels[labels != IGNORE_LABEL], rows[1:][labels != IGNORE_LABEL])
    opened = layout.conversation(prompt)
    assert torch.equal(rows[: len(opened)], opened)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            DelayModelConfig(template=Template.moss_tts_local_v1),
            "moss_tts_local_v1 does not belong to architecture=delay; choose moss_tts_delay_v1 or moss_ttsd_v1",
        ),
        (LocalModelConfig(template=Template.moss_tts_delay_v1), "architecture=local; choose moss_tts_local_v1"),
        (RealtimeModelConfig(template=Template.moss_ttsd_v1), "architecture=realtime; choose moss_tts_realtime_v1"),
    ],
)
def test_a_template_of_another_architecture(bpe: TextTokenizer, config: ModelConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_layout(config, bpe.encode)


def test_clips_with_a_placeholder_among_them_are_counted(layout: DelayLayout) -> None:
    (segment,) = assistant_message([some_codes(2), Placeholder(3)]).segments
    assert segment == Codes(Placeholder(5))
