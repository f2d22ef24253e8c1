"""The sound of a session: in pieces it is the sound of the whole, with tokenizers of both kinds."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moss.config.generation import Compatibility, SamplerConfig
from tests.generation.realtime_toy import SAMPLED, TEXT, CausalTokenizer, toy_config
from tests.generation.test_realtime_session import GREEDY, cut_anywhere, offline, session_of
from tests.generation.toy import small_cat


def waves_of(stream: Iterator[Tensor]) -> Tensor:
    return torch.cat(list(stream))


@pytest.mark.parametrize(("past", "future"), [(None, 0), (1, 0), (3, 2), (None, 1)])
def test_sound_in_pieces_is_the_sound_of_the_whole(past: int | None, future: int) -> None:
    tokenizer = CausalTokenizer()
    session = session_of(tokenizer=tokenizer, past_frames=past, future_frames=future)
    session.begin_turn()
    waves = []
    for piece in cut_anywhere(TEXT, 7):
        session.push_text(piece)
        waves += list(session.audio())
    session.end_text()
    waves += list(session.audio())
    assert len(waves) == len(session.codes()) > 5
    assert {len(wave) for wave in waves} == {tokenizer.spec.samples_per_frame}
    assert torch.equal(torch.cat(waves), tokenizer.decode([offline([], TEXT, 1, SAMPLED)])[0])


def test_a_window_bounds_the_work_and_frames_taken_as_codes_are_still_heard() -> None:
    tokenizer = CausalTokenizer()
    session = session_of(tokenizer=tokenizer, past_frames=1)
    session.begin_turn()
    session.push_text(TEXT)
    session.end_text()
    codes = torch.stack(list(session.frames()))
    heard = waves_of(session.audio())
    assert tokenizer.frames_decoded == 2 * len(codes) - 1
    assert torch.equal(heard, tokenizer.decode([codes])[0])


def test_the_work_of_a_long_turn_is_bounded_unless_asked_otherwise() -> None:
    config = replace(GREEDY, max_frames=140, runaway_repeats=0)
    for options, most in (({}, 125), ({"past_frames": 1000}, 139), ({"past_frames": None}, 139)):
        tokenizer = CausalTokenizer()
        session = session_of(config, tokenizer=tokenizer, **options)
        session.begin_turn()
        session.push_text(TEXT)
        session.end_text()
        heard = waves_of(session.audio())
        assert len(session.codes()) == 140
        assert tokenizer.frames_decoded == sum(min(before, most) + 1 for before in range(140))
        assert torch.equal(heard, tokenizer.decode([session.codes()])[0])


@pytest.mark.parametrize("audio_channels", [1, 2])
def test_a_streaming_tokenizer_decodes_each_frame_once_and_exactly(audio_channels: int) -> None:
    config = replace(GREEDY, max_frames=60, runaway_repeats=0)
    # 60 frames are several times what its layers see together; a window of one frame would be heard.
    tokenizer = small_cat(3, audio_channels=audio_channels)
    session = session_of(config, tokenizer=tokenizer, past_frames=1, future_frames=2)
    for number in range(2):
        session.begin_turn()
        session.push_text(TEXT[:40])
        waves = list(session.audio())
        # It waits for no future: all frames that can be made are heard.
        assert len(waves) == len(session.codes()) > 0
        session.push_text(TEXT[40:])
        session.end_text()
        waves += list(session.audio())
        whole = tokenizer.decode([session.codes()])[0]
        assert whole.shape == ((60 * 20,) if audio_channels == 1 else (2, 60 * 20))
        assert torch.allclose(torch.cat(waves, dim=-1), whole, rtol=0, atol=5e-5)
        if number == 0:
            session.user_turn("And then?")


def test_sound_ends_at_what_is_no_code_in_reference_mode() -> None:
    config = replace(GREEDY, compatibility=Compatibility.reference, audio=SamplerConfig(temperature=9.0))
    for seed in range(12):
        session = session_of(config, seed=seed, tokenizer=CausalTokenizer())
        session.begin_turn()
        session.push_text(TEXT)
        session.end_text()
        made = len(list(session.audio()))
        codes = session.codes()
        illegal = (codes >= toy_config().codebook_size).any(1).nonzero().flatten().tolist()
        assert made == (illegal[0] if illegal else len(codes))
        if illegal:
            return
    raise AssertionError("no seed draws anything but codes")
