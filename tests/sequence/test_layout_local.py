"""Local layouts: one position a frame, targets from the first frame on, pieces that do not merge."""

import dataclasses

import pytest
import torch
from torch import Tensor

from moss.errors import DataError
from moss.sequence.layout_local import LocalLayout, LocalV15Layout
from moss.sequence.prompt import Conversation, Placeholder, PromptMode, UserPrompt
from moss.spec import IGNORE_LABEL, SpecialTokens

N, SIZE = 3, 10
SPECIAL = SpecialTokens(
    pad=0, im_start=1, im_end=2, audio_start=3, audio_end=4, user_slot=5, gen_slot=6, delay_slot=None
)
MERGED = 99


def encode(text: str) -> list[int]:
    """One id a character, but a full stop and the newline after it are one."""
    return [MERGED if char == "\uffff" else 1000 + ord(char) for char in text.replace(".\n", "\uffff")]


V1 = LocalLayout(encode=encode, special=SPECIAL, num_codebooks=N, codebook_size=SIZE)
V15 = LocalV15Layout(encode=encode, special=SPECIAL, num_codebooks=N, codebook_size=SIZE)
PUBLISHED = dataclasses.replace(V15, reference=True)


def some_codes(frames: int, seed: int = 0) -> Tensor:
    return torch.randint(0, SIZE, (frames, N), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layout", [V1, V15], ids=["v1", "v15"])
def test_modes_share_the_prompt(layout: LocalLayout | LocalV15Layout) -> None:
    prompt, codes = UserPrompt(text="Go.", reference=[some_codes(2, 1), None, some_codes(4, 2)]), some_codes(3)
    opened = layout.conversation(prompt)
    whole = layout.conversation(prompt, [codes], PromptMode.loss)
    cut = layout.conversation(prompt, [codes], PromptMode.continuation)
    assert opened[-1].tolist() == [SPECIAL.audio_start] + [SIZE] * N
    assert torch.equal(whole[: len(opened)], opened)
    assert torch.equal(whole[: len(cut)], cut)
    answer = whole[len(opened) :]
    assert answer[:, 0].tolist() == [6, 6, 6, SPECIAL.audio_end, SPECIAL.im_end, *encode("\n")]
    assert torch.equal(answer[:3, 1:], codes)
    assert (answer[3:, 1:] == SIZE).all()
    assert len(cut) == len(opened) + 3
    assert int((opened[:, 0] == SPECIAL.user_slot).sum()) == 6
    assert torch.equal(opened[opened[:, 0] == SPECIAL.user_slot, 1:], torch.cat([some_codes(2, 1), some_codes(4, 2)]))


@pytest.mark.parametrize("layout", [V1, V15, PUBLISHED], ids=["v1", "v15", "published"])
@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize("text", ["Go.", "Go"])
def test_lengths_and_counts_without_codes(layout: LocalLayout | LocalV15Layout, frames: int, text: str) -> None:
    prompt, codes = UserPrompt(text=text, reference=[some_codes(2)]), some_codes(frames)
    inputs, labels = layout.example(prompt, codes)
    assert len(inputs) == len(labels)
    counted = dataclasses.replace(prompt, reference=[Placeholder(2)])
    assert layout.num_positions(counted, frames) == len(inputs)
    counts = layout.target_counts([frames])
    lost = int(layout is PUBLISHED and text == "Go.")
    assert ((labels != IGNORE_LABEL).sum(0) == counts - lost).all()


def test_every_frame_is_supervised_and_the_stop() -> None:
    codes = some_codes(4)
    _, labels = V15.example(UserPrompt(text="Go."), codes)
    supervised = labels[(labels != IGNORE_LABEL).any(1)]
    assert torch.equal(supervised[:-1, 1:], codes)
    assert supervised[:, 0].tolist() == [6, 6, 6, 6, SPECIAL.audio_end]


def test_the_full_stop_merges_only_in_the_published_training() -> None:
    prompt, codes = UserPrompt(text="Go."), some_codes(2)
    for layout, mode, merged in (
        (V1, PromptMode.generation, True),
        (V15, PromptMode.generation, False),
        (V15, PromptMode.loss, False),
        (PUBLISHED, PromptMode.generation, False),
        (PUBLISHED, PromptMode.loss, True),
        (PUBLISHED, PromptMode.continuation, False),
    ):
        given = None if mode is PromptMode.generation else [codes]
        assert (MERGED in layout.conversation(prompt, given, mode)[:, 0].tolist()) is merged, (layout, mode)


def test_published_continuation_forgets_the_references() -> None:
    prompt, codes = UserPrompt(text="Go", reference=[some_codes(2)]), [some_codes(3)]
    alone = dataclasses.replace(prompt, reference=None)
    rows = PUBLISHED.conversation(prompt, codes, PromptMode.continuation)
    assert torch.equal(rows, V15.conversation(alone, codes, PromptMode.continuation))
    assert not torch.equal(rows, V15.conversation(prompt, codes, PromptMode.continuation))


def test_published_training_parts_references_by_a_newline() -> None:
    prompt = UserPrompt(text="Go", reference=[some_codes(1), some_codes(1)])
    newline, start, end = encode("\n"), SPECIAL.audio_start, SPECIAL.audio_end
    for layout, between in ((V15, []), (PUBLISHED, newline)):
        ids = layout.conversation(prompt, [some_codes(1)], PromptMode.loss)[:, 0].tolist()
        first = ids.index(start)
        assert ids[first : first + 6 + len(between)] == [start, 5, end, *between, start, 5, end]


@pytest.mark.parametrize("layout", [V1, V15], ids=["v1", "v15"])
def test_errors(layout: LocalLayout | LocalV15Layout) -> None:
    with pytest.raises(DataError, match="mode=continuation needs the assistant's codes; give them, or use mode=gen"):
        layout.conversation(UserPrompt(text="a"), mode=PromptMode.continuation)
    with pytest.raises(DataError, match="an example needs the codes of the assistant; encode its audio first"):
        layout.example(UserPrompt(text="a"), None)
    with pytest.raises(DataError, match=r"answers one user turn; give a UserPrompt \(a Conversation is for"):
        layout.conversation(Conversation())
    with pytest.raises(DataError, match=r"codes range over 10\.\.10, outside \[0, 10\)"):
        layout.example(UserPrompt(text="a"), torch.full((2, N), SIZE))
