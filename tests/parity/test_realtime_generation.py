"""MossTTSRealtime's sampler, offline batch and two-turn session against the published implementation."""

import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from moss.config.generation import Compatibility, GenerationConfig, SamplerConfig
from moss.data.text_tokenizer import FileTextTokenizer
from moss.generation.loop import StopReason
from moss.generation.realtime_loop import RealtimePrompt, generate_realtime, prefill_batch
from moss.generation.realtime_session import RealtimeSession
from moss.generation.sampling import keep_top_k, keep_top_p, penalise_seen, scale
from moss.model.realtime import RealtimeModel
from moss.sequence.layout import build_layout
from moss.sequence.layout_realtime import RealtimeLayout
from tests.parity.fixture_files import fixture_path, load_fixture
from tests.parity.test_realtime_model import model_of


@pytest.fixture(scope="module")
def fixture() -> dict[str, Any]:
    return load_fixture("ref_realtime.pt.gz")


@pytest.fixture(scope="module")
def model(fixture: dict[str, Any]) -> RealtimeModel:
    return model_of(fixture["gen"])


@pytest.fixture(scope="module")
def layout(model: RealtimeModel) -> RealtimeLayout:
    made = build_layout(model.config, FileTextTokenizer(fixture_path("toy_tokenizer_realtime.json.gz")).encode)
    assert isinstance(made, RealtimeLayout)
    return made


def number(digits: str) -> float:
    """The fixture's names spell 1.1 as 11 and 0.6 as 06."""
    return int(digits) / 10 ** (len(digits) - 1)


def greedy(penalty: float, window: int) -> GenerationConfig:
    sampler = SamplerConfig(temperature=0.0, repetition_penalty=penalty, penalty_window=window)
    return GenerationConfig(audio=sampler, compatibility=Compatibility.reference, runaway_repeats=0)


def names(entry: str, start: str) -> list[str]:
    found = [key for key in load_fixture("ref_realtime.pt.gz")[entry] if key.startswith(start)]
    assert found, f"{entry} has nothing that starts with {start}"
    return found


def setting(name: str) -> tuple[float, int]:
    """Penalty and window that an entry's name tells."""
    match = re.fullmatch(r"(?:frames_)?rep(\d+)(?:_win(\d+))?", name)
    assert match, name
    return number(match[1]), int(match[2] or 0)


@pytest.mark.parametrize("name", names("sampler", "rep"))
def test_windowed_penalty(fixture: dict[str, Any], name: str) -> None:
    entry = fixture["sampler"]
    penalty, window = setting(name)
    scores, recent = entry["scores"][:, 0], entry["hist"][:, -window:]
    seen = torch.zeros_like(scores, dtype=torch.bool).scatter(1, recent, True)
    assert torch.equal(penalise_seen(scores, seen, penalty), entry[name])


@pytest.mark.parametrize("name", names("sampler", "top"))
def test_sampler_filters(fixture: dict[str, Any], name: str) -> None:
    entry = fixture["sampler"]
    logits = entry["scores"].reshape(entry[name].shape)
    # The published chain divides by a temperature before its filters; what is left tells which.
    kept = torch.isfinite(entry[name])
    logits = scale(logits, round(float((logits[kept] / entry[name][kept]).median()), 3))
    top_k, top_p = re.search(r"k(\d+)", name), re.search(r"p(\d+)", name.removeprefix("top"))
    if top_k:
        logits = keep_top_k(logits, int(top_k[1]))
    if top_p:
        logits = keep_top_p(logits, number(top_p[1]))
    assert torch.equal(logits, entry[name])


def prompts_of(entry: dict[str, Any]) -> list[RealtimePrompt]:
    pairs = zip(entry["ensembles"], entry["text_ids"], strict=True)
    return [RealtimePrompt(rows=rows, text_ids=text_ids) for rows, text_ids in pairs]


def test_prefill(fixture: dict[str, Any], model: RealtimeModel) -> None:
    entry = fixture["gen"]
    rows, mask = prefill_batch(model.config, prompts_of(entry))
    assert torch.equal(rows, entry["prefill_input_ids"])
    assert torch.equal(mask, entry["prefill_attention_mask"].bool())
    lead = [min(len(text_ids), model.config.text_lead) for text_ids in entry["text_ids"]]
    assert lead == entry["prefill_text_cur"]


@pytest.mark.parametrize("name", names("gen", "frames"))
def test_offline_batch(fixture: dict[str, Any], model: RealtimeModel, layout: RealtimeLayout, name: str) -> None:
    entry, want = fixture["gen"], fixture["gen"][name]
    assert [layout.encode(text) for text in entry["texts"]] == [list(ids) for ids in entry["text_ids"]]
    config = greedy(*setting(name))
    longest = max(len(frames) for frames in want)
    results = generate_realtime(model, prompts_of(entry), [0] * len(want), config, max_frames=[longest + 1] * len(want))
    for result, frames, lead in zip(results, want, entry["prefill_text_cur"], strict=True):
        assert torch.equal(result.rows[lead:, 1:][: len(frames)], frames)
        # The longest may have been cut by the published budget; all others end by themselves where ours do.
        if len(frames) < longest or result.stop_reason is StopReason.end:
            assert result.stop_reason is StopReason.end
            assert len(result.rows) == lead + len(frames) + 1


def test_two_turns_on_one_cache(fixture: dict[str, Any], model: RealtimeModel, layout: RealtimeLayout) -> None:
    turns = fixture["stream"]["turns"]
    first = turns[0]["turn_input_ids"]
    voice = first[first[:, 0] == layout.special.user_slot][:, 1:]
    # The session was made with the sampler of the offline batch that has a window.
    penalty, window = next(setting(name) for name in names("gen", "frames") if setting(name)[1])
    session = RealtimeSession(
        model, layout, reference_codes=voice if len(voice) else None, config=greedy(penalty, window)
    )
    for turn in turns:
        held = session.num_positions
        session.user_turn(turn["user_text"], torch.tensor(turn["user_codes"]))
        session.begin_turn()
        assert torch.equal(session.history()[held:], turn["turn_input_ids"])
        want, finished = turn["frames"], turn["finished"]
        frames = spoken_word_by_word(session, turn["assistant_text"], len(want) + finished)
        # The published frames include the one that ends the turn.
        assert torch.equal(frames, want[: len(want) - finished])
        assert session.stop_reason is (StopReason.end if finished else None)
        assert session.num_positions == turn["cache_len"] == turn["mask_len"]
        if not finished:
            session.cancel()


def spoken_word_by_word(session: RealtimeSession, text: str, most: int) -> Tensor:
    """A turn's codes, at most so many frames of it."""
    for piece in [*re.findall(r"\S+\s*", text), None]:
        if piece is None:
            session.end_text()
        else:
            session.push_text(piece)
        for _ in itertools.islice(session.frames(), most - len(session.codes())):
            pass
    return session.codes()
