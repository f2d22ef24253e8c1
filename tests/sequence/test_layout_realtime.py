"""Realtime turns: text ahead of audio, turn after turn, counted without codes."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moss.errors import DataError
from moss.sequence.layout_realtime import RealtimeLayout
from moss.sequence.prompt import Conversation, Placeholder, PromptMode, Turn, UserPrompt
from moss.spec import IGNORE_LABEL, SpecialTokens

N, SIZE, LEAD = 3, 10, 4
PAD, BOS, EOS = 10, 11, 12
SPECIAL = SpecialTokens(
    pad=0,
    im_start=1,
    im_end=2,
    audio_start=None,
    audio_end=None,
    user_slot=5,
    gen_slot=None,
    delay_slot=None,
    text_pad=8,
)


def letters(text: str) -> list[int]:
    """One id a character, but a run of newlines is one."""
    return [100 + ord(char) for i, char in enumerate(text) if char != "\n" or text[i - 1 : i] != "\n"]


LAYOUT = RealtimeLayout(encode=letters, special=SPECIAL, num_codebooks=N, codebook_size=SIZE, lead=LEAD)
PUBLISHED = dataclasses.replace(LAYOUT, reference=True)


def some_codes(frames: int, seed: int = 0) -> Tensor:
    return torch.randint(0, SIZE, (frames, N), generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 9), st.booleans(), st.booleans())
def test_a_turn_in_words(length: int, frames: int, first: bool, reference: bool) -> None:
    """Every position of a turn, by a loop that knows the rules one at a time."""
    layout, codes, text = PUBLISHED if reference else LAYOUT, some_codes(frames), "abcdefghijklmn"[:length]
    rows = layout.turn_rows(Turn("assistant", text, codes), first)
    header = [*([] if first else [2, *letters("\n")]), 1, *letters("assistant\n")]
    assert rows[: len(header), 0].tolist() == header
    body = rows[len(header) :]
    ahead = min(length, LEAD)
    expected = []
    for position in range(max(length, ahead + frames + 1)):
        row = [letters(text)[position] if position < length else SPECIAL.text_pad, PAD, PAD, PAD]
        if position == ahead - 1:
            row[1] = BOS
        elif position == ahead + frames:
            row[1] = EOS
        elif 0 <= position - ahead < frames:
            row[1:] = codes[position - ahead].tolist()
        expected.append(row)
    assert body.tolist() == expected
    assert (rows[: len(header), 1:] == PAD).all()


def test_written_turn_is_header_and_text() -> None:
    rows = LAYOUT.turn_rows(Turn("user", "hi"), first=True)
    assert rows[:, 0].tolist() == [1, *letters("user\n"), *letters("hi")]
    assert (rows[:, 1:] == PAD).all()


def test_voice_stands_in_the_ensemble() -> None:
    voice = some_codes(3)
    plain, cloned = LAYOUT.ensemble_rows(), LAYOUT.ensemble_rows(voice)
    assert torch.equal(cloned[: len(plain)], plain)
    slots = cloned[:, 0] == SPECIAL.user_slot
    assert torch.equal(cloned[slots, 1:], voice)
    assert (cloned[~slots, 1:] == PAD).all()


@pytest.mark.parametrize("length", [1, LEAD - 1, LEAD, LEAD + 3])
def test_prefill(length: int) -> None:
    ids = list(range(100, 100 + length))
    rows = LAYOUT.prefill_rows(ids)
    assert rows[:, 0].tolist() == ids[:LEAD]
    assert rows[-1, 1:].tolist() == [BOS, PAD, PAD]
    assert (rows[:-1, 1:] == PAD).all()


def test_prefill_continues_the_generation_prompt_like_training() -> None:
    turns = [Turn("user", "what is it", some_codes(2)), Turn("assistant", "it is noon", some_codes(5, 1))]
    asked = Conversation(reference=some_codes(2, 2), turns=[turns[0], dataclasses.replace(turns[1], codes=None)])
    opened = LAYOUT.conversation(asked)
    trained = LAYOUT.conversation(dataclasses.replace(asked, turns=turns), mode=PromptMode.loss)
    prefilled = torch.cat([opened, LAYOUT.prefill_rows(letters("it is noon"))])
    assert torch.equal(trained[: len(prefilled)], prefilled)
    assert torch.equal(LAYOUT.conversation(dataclasses.replace(asked, turns=turns[:1])), opened)
    assert torch.equal(LAYOUT.conversation(asked, [turns[1].codes], PromptMode.loss), trained)
    cut = LAYOUT.conversation(asked, [turns[1].codes], PromptMode.continuation)
    assert torch.equal(cut, trained[: len(cut)])
    assert len(cut) == len(prefilled) + 5
    assert trained[len(cut), 1] == EOS


def four_turns(placeholders: bool = False) -> Conversation:
    def audio(frames: int) -> Tensor | Placeholder:
        return Placeholder(frames) if placeholders else some_codes(frames, frames)

    return Conversation(
        reference=audio(2),
        turns=[
            Turn("user", "hello there", audio(3)),
            Turn("assistant", "hi", audio(4)),
            Turn("user", "written"),
            Turn("assistant", "a longer answer", audio(6)),
            Turn("user", "goodbye", audio(5)),
        ],
    )


def test_targets_are_the_assistants_frames_and_their_ends() -> None:
    inputs, labels = LAYOUT.example(four_turns())
    rows = LAYOUT.conversation(four_turns(), mode=PromptMode.loss)
    assert torch.equal(inputs, rows[:-1])
    assert (labels[:, 0] == IGNORE_LABEL).all()
    chosen = labels[(labels != IGNORE_LABEL).any(1)]
    assert [row[0] == EOS for row in chosen[:, 1:].tolist()] == [False] * 4 + [True] + [False] * 6 + [True]
    frames = chosen[chosen[:, 1] != EOS]
    assert torch.equal(frames[:, 1:], torch.cat([some_codes(4, 4), some_codes(6, 6)]))
    assert (chosen[chosen[:, 1] == EOS][:, 2:] == IGNORE_LABEL).all()
    known = labels != IGNORE_LABEL
    assert torch.equal(labels[known], rows[1:][known])
    assert torch.equal(known.sum(0), LAYOUT.target_counts([4, 6]))


def test_lengths_without_codes() -> None:
    inputs, _ = LAYOUT.example(four_turns())
    assert LAYOUT.num_positions(four_turns(placeholders=True)) == len(inputs)
    asked = Conversation(turns=[Turn("assistant", "hello")])
    inputs, labels = LAYOUT.example(asked, some_codes(7))
    assert LAYOUT.num_positions(asked, 7) == len(inputs)
    assert int((labels != IGNORE_LABEL).sum()) == 7 * N + 1


def test_counts_of_kept_codebooks() -> None:
    assert LAYOUT.target_counts([4, 6]).tolist() == [0, 12, 10, 10]
    assert LAYOUT.target_counts([4, 6], kept=[1, 2]).tolist() == [0, 12, 6, 0]


def test_only_the_published_session_closes_a_turn_that_never_was() -> None:
    turn = Turn("user", "hi", some_codes(2))
    fixed, published = LAYOUT.turn_rows(turn, True), PUBLISHED.turn_rows(turn, True)
    assert torch.equal(published, LAYOUT.turn_rows(turn, False))
    assert torch.equal(fixed, published[2:])
    asked = Conversation(turns=[turn])
    assert len(PUBLISHED.conversation(asked)) == len(LAYOUT.conversation(asked)) + 2
    # Training never doubled it.
    spoken = Conversation(turns=[turn, Turn("assistant", "yes", some_codes(1))])
    assert torch.equal(
        PUBLISHED.conversation(spoken, mode=PromptMode.loss), LAYOUT.conversation(spoken, mode=PromptMode.loss)
    )
    # An assistant that speaks first has nothing to close either way.
    first = Turn("assistant", "yes", some_codes(1))
    assert torch.equal(PUBLISHED.turn_rows(first, True), LAYOUT.turn_rows(first, True))


def test_a_line_break_in_front_shifts_nothing_but_the_published_layout() -> None:
    fixed = LAYOUT.turn_rows(Turn("assistant", "\nab", some_codes(2)), first=True)
    assert fixed[:, 0].tolist() == [1, *letters("assistant\n"), *letters("\nab"), 8, 8, 8]
    published = PUBLISHED.turn_rows(Turn("assistant", "\nab", some_codes(2)), first=True)
    assert len(published) == len(fixed) - 1
    with pytest.raises(DataError, match=r"has no room for the end of the turn '\\nabcd', .* remove the line breaks"):
        PUBLISHED.turn_rows(Turn("assistant", "\nabcd", some_codes(2)), first=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LAYOUT.turn_rows(Turn("system", "a"), True), "role is 'system'; it must be one of user, assistant"),
        (lambda: LAYOUT.open_turn_rows("", True), "role is ''"),
        (lambda: LAYOUT.prefill_rows([]), "a spoken turn needs at least one text id before its first frame"),
        (lambda: LAYOUT.turn_rows(Turn("assistant", "a"), True), "the assistant's turn 'a' has no codes; give them"),
        (
            lambda: LAYOUT.conversation(UserPrompt(text="a")),
            "speaks turns; give a Conversation instead of a UserPrompt",
        ),
        (
            lambda: LAYOUT.example(Conversation()),
            "the conversation has no assistant turn, so there is nothing to learn",
        ),
        (
            lambda: LAYOUT.example(Conversation(turns=[Turn("user", "a")]), some_codes(1)),
            "does not end with an assistant's turn that has none; give them there",
        ),
        (lambda: LAYOUT.ensemble_rows(torch.full((2, N), SIZE)), r"codes range over 10\.\.10, outside \[0, 10\)"),
        (
            lambda: LAYOUT.turn_rows(Turn("user", "a", torch.zeros(2, N + 1)), True),
            r"expected codes of shape \(frames, 3\), got \(2, 4\)",
        ),
    ],
)
def test_errors(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(DataError, match=message):
        call()
