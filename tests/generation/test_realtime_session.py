"""The session against the offline call: any cutting of the text, several turns on one cache, cancelling, sound."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moss.config.generation import Compatibility, GenerationConfig, SamplerConfig
from moss.errors import DataError, GenerationError
from moss.generation.loop import StopReason
from moss.generation.realtime_loop import RealtimePrompt, generate_realtime
from moss.generation.realtime_session import RealtimeSession
from moss.generation.requests import turn_seed
from moss.model.decoder import BackboneDecoder
from moss.sequence.prompt import Conversation, Turn
from tests.generation.realtime_toy import (
    SAMPLED,
    TEXT,
    toy_codes,
    toy_config,
    toy_layout,
    toy_model,
)

GREEDY = GenerationConfig(audio=SamplerConfig(temperature=0.0), max_frames=12, runaway_repeats=0)
LEAD = toy_config().text_lead


TERSE = replace(SAMPLED, max_frames=14)
"""With this one the model is not talkative: turns end by themselves or at the limit."""


def session_of(config: GenerationConfig = SAMPLED, seed: int = 1, **options: object) -> RealtimeSession:
    return RealtimeSession(toy_model(config is not TERSE), toy_layout(), config=config, seed=seed, **options)


def offline(turns: list[Turn], text: str, seed: int, config: GenerationConfig, voice: Tensor | None = None) -> Tensor:
    """Codes of one offline call that speaks `text` after `turns`."""
    rows = toy_layout().conversation(Conversation(reference=voice, turns=turns))
    prompt = RealtimePrompt(rows=rows, text_ids=toy_layout().encode(text))
    segments = generate_realtime(toy_model(config is not TERSE), [prompt], [seed], config)[0].segments
    return segments[0].codes if segments else torch.empty(0, toy_config().num_codebooks, dtype=torch.long)


def say(session: RealtimeSession, pieces: list[str]) -> Tensor:
    """Codes of a whole turn, frames pulled after every piece."""
    session.begin_turn()
    for piece in pieces:
        session.push_text(piece)
        list(session.frames())
    session.end_text()
    list(session.frames())
    return session.codes()


def cut_anywhere(text: str, seed: int) -> list[str]:
    random = torch.Generator().manual_seed(seed)
    cuts = sorted(torch.randint(0, len(text) + 1, (seed % 12,), generator=random).tolist())
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.parametrize("seed", range(8))
def test_any_cutting_of_the_text_gives_the_frames_of_the_offline_call(seed: int) -> None:
    pieces = list(TEXT) if seed == 0 else cut_anywhere(TEXT, seed)
    voice = toy_codes(6) if seed % 2 else None
    session = session_of(seed=seed, reference_codes=voice)
    codes = say(session, pieces)
    assert torch.equal(codes, offline([], TEXT, seed, SAMPLED, voice))
    assert len(codes) > 0


@pytest.mark.parametrize("size", [1, 3, 7])
def test_tokens_in_any_pieces_give_the_frames_of_the_offline_call(size: int) -> None:
    ids = toy_layout().encode(TEXT)
    session = session_of()
    session.begin_turn()
    for start in range(0, len(ids), size):
        session.push_tokens(ids[start : start + size])
        list(session.frames())
    session.end_text()
    list(session.frames())
    assert torch.equal(session.codes(), offline([], TEXT, 1, SAMPLED))


def test_a_short_text_waits_for_its_end() -> None:
    session = session_of()
    session.begin_turn()
    session.push_tokens([7])
    assert list(session.frames()) == []
    session.end_text()
    list(session.frames())
    rows = toy_layout().conversation(Conversation(reference=None, turns=[]))
    prompt = RealtimePrompt(rows=rows, text_ids=[7])
    assert torch.equal(session.codes(), generate_realtime(toy_model(True), [prompt], [1], SAMPLED)[0].segments[0].codes)


def test_each_frame_needs_one_more_token_until_the_text_ends() -> None:
    session = session_of(GREEDY)
    session.begin_turn()
    made = []
    for token in range(20, 20 + LEAD + 3):
        session.push_tokens([token])
        made.append(len(list(session.frames())))
    assert made == [0] * (LEAD - 1) + [1] * 4
    assert session.stop_reason is None
    session.end_text()
    list(session.frames())
    assert session.stop_reason is StopReason.max_frames
    assert len(session.codes()) == GREEDY.max_frames
    assert list(session.frames()) == []


def turns_of(session: RealtimeSession, texts: list[str], user: Callable[[int], dict[str, object]]) -> list[Turn]:
    """Speak a dialogue; what was said."""
    turns: list[Turn] = []
    for index, text in enumerate(texts):
        said = user(index)
        session.user_turn(**said)
        turns.append(Turn(role="user", text=said.get("text") or "", codes=said.get("codes")))
        turns.append(Turn(role="assistant", text=text, codes=say(session, [text])))
    return turns


def users(index: int) -> dict[str, object]:
    kinds = [{"text": "hello there"}, {"text": "is it you", "codes": toy_codes(9)}, {"codes": toy_codes(2, 1)}]
    return kinds[index % 3]


@pytest.fixture
def dialogue() -> tuple[RealtimeSession, list[Turn]]:
    session = session_of(TERSE, seed=12, reference_codes=toy_codes(4))
    return session, turns_of(session, ["press the star key now", "yes", TEXT, "goodbye then my friend"], users)


def test_turns_on_one_cache_equal_offline_calls_with_all_earlier_turns(
    dialogue: tuple[RealtimeSession, list[Turn]],
) -> None:
    turns = dialogue[1]
    for number, at in enumerate(range(1, len(turns), 2)):
        want = offline(turns[:at], turns[at].text, turn_seed(12, number), TERSE, toy_codes(4))
        assert torch.equal(turns[at].codes, want)
    assert any(len(turn.codes) < 14 for turn in turns[1::2])
    assert any(len(turn.codes) == 14 for turn in turns[1::2])


def test_what_was_read_is_laid_out_as_in_training(dialogue: tuple[RealtimeSession, list[Turn]]) -> None:
    session, turns = dialogue
    session.user_turn("and that is all")
    rows = [toy_layout().ensemble_rows(toy_codes(4))]
    turns.append(Turn(role="user", text="and that is all"))
    rows += [toy_layout().turn_rows(turn, index == 0) for index, turn in enumerate(turns)]
    assert torch.equal(session.history(), torch.cat(rows))
    assert session.num_positions == len(session.history())


def test_every_position_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    extend = BackboneDecoder.extend

    def counted(self: BackboneDecoder, embedded: Tensor, mask: Tensor | None = None) -> Tensor:
        counts.append(embedded.shape[1])
        return extend(self, embedded, mask)

    monkeypatch.setattr(BackboneDecoder, "extend", counted)
    session = session_of(GREEDY)
    turns_of(session, ["press the star key now"] * 3, users)
    assert sum(counts) == session.num_positions == len(session.history())


def test_the_session_goes_on_after_dropping_a_turn_as_if_it_had_not_been() -> None:
    session = session_of(GREEDY)
    session.user_turn("hello")
    before = session.history()
    session.begin_turn()
    session.push_text(TEXT)
    assert next(session.frames()) is not None
    session.cancel(keep_spoken=False)
    assert torch.equal(session.history(), before)
    user = Turn(role="user", text="hello")
    assert torch.equal(say(session, ["one two three"]), offline([user], "one two three", 0, GREEDY))


def test_dropping_the_very_first_turn_leaves_the_next_one_first() -> None:
    session = session_of(GREEDY)
    session.begin_turn()
    session.cancel()
    assert session.stop_reason is None
    assert torch.equal(say(session, ["one two three"]), offline([], "one two three", 0, GREEDY))


@pytest.mark.parametrize("heard", [None, 4, 1])
def test_an_interrupted_turn_stays_with_what_was_spoken(heard: int | None) -> None:
    session = session_of(GREEDY)
    session.begin_turn()
    session.push_text(TEXT)
    stream = session.frames()
    spoken = torch.stack([next(stream) for _ in range(6)])
    session.cancel(heard_frames=heard)
    assert session.stop_reason is StopReason.cancelled
    assert list(stream) == []
    kept = spoken[:heard]
    assert torch.equal(session.codes(), kept)
    answer = say(session, ["yes of course I do"])
    # The model had been given the text that leads the audio, and no more.
    ids = toy_layout().encode(TEXT)[: LEAD + len(kept)]
    by_ids = replace(toy_layout(), encode=lambda text: ids if text == "SPOKEN" else toy_layout().encode(text))
    first = Turn(role="assistant", text="SPOKEN", codes=kept)
    rows = by_ids.conversation(Conversation(reference=None, turns=[first]))
    prompt = RealtimePrompt(rows=rows, text_ids=toy_layout().encode("yes of course I do"))
    assert torch.equal(session.history()[: len(rows)], rows)
    assert torch.equal(answer, generate_realtime(toy_model(True), [prompt], [0], GREEDY)[0].segments[0].codes)


def test_interrupting_before_any_sound_forgets_the_turn() -> None:
    session = session_of(GREEDY)
    session.begin_turn()
    session.push_text(TEXT)
    session.cancel(heard_frames=0)
    assert session.num_positions == len(toy_layout().ensemble_rows(None))


def test_a_turn_can_be_cut_after_it_was_made() -> None:
    session = session_of(GREEDY)
    codes = say(session, [TEXT])
    session.cancel(heard_frames=2)
    session.user_turn("wait")
    assert torch.equal(session.codes(), torch.empty(0, 3, dtype=torch.long))
    frames = session.history()[:, 1:]
    assert (frames == codes[1]).all(1).any()
    assert not (frames == codes[2]).all(1).any()


def test_text_behind_an_early_end_stays_in_the_context() -> None:
    for seed in range(30):
        session = session_of(TERSE, seed=seed)
        session.begin_turn()
        session.push_text(TEXT[:60])
        list(session.frames())
        if session.stop_reason is StopReason.end and len(session.codes()):
            break
    assert session.stop_reason is StopReason.end
    session.push_text(TEXT[60:])
    assert list(session.frames()) == []
    codes = session.codes()
    session.user_turn("what")
    turns = [Turn(role="assistant", text=TEXT, codes=codes), Turn(role="user", text="what")]
    rows = [toy_layout().ensemble_rows(None), *(toy_layout().turn_rows(t, i == 0) for i, t in enumerate(turns))]
    assert torch.equal(session.history(), torch.cat(rows))


def test_reference_mode_forgets_the_end_of_a_turn() -> None:
    session = session_of(replace(GREEDY, compatibility=Compatibility.reference), seed=0)
    codes = say(session, ["press the star key now"])
    length = session.num_positions
    session.user_turn("what")
    reference = replace(toy_layout(), reference=True)
    header = toy_layout().open_turn_rows("assistant", True)
    ids = toy_layout().encode("press the star key now")
    fed = len(codes) - (session.stop_reason is StopReason.max_frames or len(codes) == GREEDY.max_frames)
    assert length == len(toy_layout().ensemble_rows(None)) + len(header) + min(LEAD, len(ids)) + fed
    user = reference.turn_rows(Turn(role="user", text="what"), False)
    assert torch.equal(session.history()[length:], user)
    again = session_of(replace(GREEDY, compatibility=Compatibility.reference))
    again.user_turn("what")
    assert torch.equal(again.history()[-len(user) :], user), "the published session closes a turn before the first"


def test_reset_starts_afresh() -> None:
    session = session_of(seed=4, reference_codes=toy_codes(3))
    first = say(session, [TEXT])
    session.reset()
    assert session.num_positions == len(session.history()) == 0
    assert torch.equal(say(session, [TEXT]), first)


def test_the_context_can_run_full() -> None:
    most = toy_config().max_positions
    session = session_of(replace(GREEDY, max_frames=2 * most))
    session.begin_turn()
    session.push_text("one two three four five six")
    session.end_text()
    assert len(list(session.frames())) > 100
    assert session.stop_reason is StopReason.max_frames
    assert session.num_positions == most
    with pytest.raises(
        GenerationError, match=rf"has {most} positions and needs \d+ more, the model holds {most}; reset"
    ):
        session.begin_turn()
    with pytest.raises(GenerationError, match=r"needs \d+ more, .* reset\(\) the session"):
        session.user_turn("word")
    session.reset()
    assert len(say(session, ["one two three"])) > 0


STATE_ERRORS: list[tuple[Callable[[RealtimeSession], object], str]] = [
    (lambda s: s.frames(), r"no assistant's turn is open; call begin_turn\(\)"),
    (lambda s: s.push_text("a"), r"no assistant's turn is open; call begin_turn\(\)"),
    (lambda s: s.end_text(), r"no assistant's turn is open"),
    (lambda s: s.cancel(), r"no assistant's turn is open"),
    (
        lambda s: (s.begin_turn(), s.begin_turn()),
        r"the assistant's turn is not over; take frames\(\).*or cancel\(\) it",
    ),
    (lambda s: (s.begin_turn(), s.user_turn("a")), r"the assistant's turn is not over"),
    (lambda s: s.user_turn(), "a user turn has neither text nor codes"),
    (lambda s: (s.begin_turn(), s.end_text()), r"the turn has no text yet; push_text first, or cancel\(\)"),
    (lambda s: (s.begin_turn(), s.push_tokens([1024])), r"text token 1024 is outside \[0, 1024\)"),
    (lambda s: (s.begin_turn(), s.push_text("a"), s.end_text(), s.push_text("b")), r"was ended by end_text\(\)"),
    (lambda s: (s.begin_turn(), s.push_text("a"), s.end_text(), s.end_text()), r"was ended by end_text\(\)"),
    (lambda s: (s.begin_turn(), s.cancel(heard_frames=1)), "heard_frames: expected 0 to 0, the frames made"),
    (lambda s: (s.begin_turn(), s.audio()), "the session has no audio tokenizer"),
    (lambda s: (spoken(s), s.cancel(), s.push_text("b")), "the turn was cancelled and takes no more text"),
]


def spoken(session: RealtimeSession) -> None:
    session.begin_turn()
    session.push_text(TEXT)
    next(session.frames())


@pytest.mark.parametrize(("steps", "message"), STATE_ERRORS)
def test_state_errors_say_what_to_do(steps: Callable[[RealtimeSession], object], message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        steps(session_of(GREEDY))


def test_codes_of_another_tokenizer_are_refused() -> None:
    with pytest.raises(DataError, match="expected codes of shape"):
        session_of().user_turn(codes=torch.zeros(4, 2, dtype=torch.long))
    with pytest.raises(DataError, match="codes range over"):
        session_of(reference_codes=torch.full((4, 3), 99)).begin_turn()
