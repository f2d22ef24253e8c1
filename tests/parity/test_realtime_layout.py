"""MossTTSRealtime: ensembles, turns, training rows and prefill against the published code."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from moss.config.model import RealtimeModelConfig
from moss.data.text_tokenizer import FileTextTokenizer
from moss.sequence.layout import RealtimeLayout, build_layout, left_pad
from moss.sequence.prompt import Conversation, PromptMode, Turn
from moss.spec import IGNORE_LABEL
from tests.parity.fixture_files import fixture_path, load_fixture


@pytest.fixture(scope="module")
def fixture() -> dict[str, Any]:
    return load_fixture("ref_realtime.pt.gz")


@pytest.fixture(scope="module")
def fixed(fixture: dict[str, Any]) -> RealtimeLayout:
    tokenizer = FileTextTokenizer(fixture_path("toy_tokenizer_realtime.json.gz"))
    first = fixture["dataset"]["ensemble_noref"]
    # A text position holds nothing but the pad code.
    config = RealtimeModelConfig(num_codebooks=first.shape[1] - 1, codebook_size=int(first[0, 1]))
    layout = build_layout(config, tokenizer.encode)
    assert isinstance(layout, RealtimeLayout)
    return layout


@pytest.fixture(scope="module")
def published(fixed: RealtimeLayout) -> RealtimeLayout:
    return dataclasses.replace(fixed, reference=True)


def record_conversation(record: dict[str, Any]) -> Conversation:
    reference = record.get("ref_audio_codes")
    return Conversation(
        reference=None if reference is None else torch.tensor(reference),
        turns=[Turn(turn["role"], turn["text"], torch.tensor(turn["audio_codes"])) for turn in record["conversations"]],
    )


def voice_of(rows: Tensor, layout: RealtimeLayout) -> Tensor:
    """The codes of the voice block."""
    return rows[rows[:, 0] == layout.special.user_slot][:, 1:]


def test_ensembles(fixture: dict[str, Any], fixed: RealtimeLayout) -> None:
    dataset = fixture["dataset"]
    assert torch.equal(fixed.ensemble_rows(), dataset["ensemble_noref"])
    want = dataset["ensemble_ref"]
    assert torch.equal(fixed.ensemble_rows(voice_of(want, fixed)), want)
    for want in [dataset["inferencer_ensemble"], *fixture["gen"]["ensembles"]]:
        voice = voice_of(want, fixed)
        prompt = Conversation(reference=voice if len(voice) else None, turns=[Turn("assistant", "to be spoken")])
        assert torch.equal(fixed.conversation(prompt), want)
        assert torch.equal(fixed.conversation(dataclasses.replace(prompt, turns=[])), want)


def test_dataset(fixture: dict[str, Any], fixed: RealtimeLayout, published: RealtimeLayout) -> None:
    dataset = fixture["dataset"]
    lengths = set()
    for record, want in zip(dataset["records"], dataset["items"], strict=True):
        prompt = record_conversation(record)
        for layout in (fixed, published):
            assert torch.equal(layout.conversation(prompt, mode=PromptMode.loss), want["input_ids"])
            inputs, labels = layout.example(prompt)
            assert torch.equal(inputs, want["input_ids"][:-1])
            assert torch.equal(labels, want["labels"][1:])
            assert (want["labels"][0] == IGNORE_LABEL).all()
            assert layout.num_positions(prompt) == len(inputs)
            frames = [len(turn["audio_codes"]) for turn in record["conversations"] if turn["role"] == "assistant"]
            assert torch.equal((labels != IGNORE_LABEL).sum(0), layout.target_counts(frames))
        lengths |= {len(fixed.encode(turn.text)) >= fixed.lead for turn in prompt.turns}
    assert lengths == {True, False}


def test_collation(fixture: dict[str, Any], fixed: RealtimeLayout) -> None:
    """The published batch is padded behind; ours in front, which the mask makes the same."""
    dataset = fixture["dataset"]
    want = dataset["batch"]
    pad = torch.tensor([fixed.special.pad] + [fixed.pad_code] * fixed.num_codebooks)
    rows = [fixed.conversation(record_conversation(record), mode=PromptMode.loss) for record in dataset["records"]]
    batch, mask = left_pad([item.flip(0) for item in rows], pad)
    assert torch.equal(batch.flip(1), want["input_ids"])
    assert torch.equal(mask.flip(1), want["attention_mask"].bool())


def test_user_prompt(fixture: dict[str, Any], fixed: RealtimeLayout, published: RealtimeLayout) -> None:
    dataset = fixture["dataset"]
    want = dataset["user_prompt"]
    turns = [turn for record in dataset["records"] for turn in record_conversation(record).turns]
    matches = []
    for turn in turns:
        user = dataclasses.replace(turn, role="user")
        for layout, first in ((fixed, False), (published, True), (published, False)):
            rows = torch.cat([layout.turn_rows(user, first), layout.open_turn_rows("assistant", first=False)])
            matches.append(torch.equal(rows, want))
    # One turn of the records was asked; all three ways to say it agree.
    assert sum(matches) == 3
    index = matches.index(True)
    assert matches[index : index + 3] == [True] * 3
    rows = fixed.turn_rows(dataclasses.replace(turns[index // 3], role="user"), first=True)
    closing = [fixed.special.im_end, *fixed.encode("\n")]
    assert rows[:, 0].tolist() == want[len(closing) : len(closing) + len(rows), 0].tolist()


def test_prefill(fixture: dict[str, Any], fixed: RealtimeLayout) -> None:
    entry = fixture["gen"]
    prompts = []
    for text, ids, ensemble, used in zip(
        entry["texts"], entry["text_ids"], entry["ensembles"], entry["prefill_text_cur"], strict=True
    ):
        assert fixed.encode(text) == ids
        prefill = fixed.prefill_rows(ids)
        assert len(prefill) == used
        prompts.append(torch.cat([ensemble, prefill]))
    pad = torch.tensor([fixed.special.pad] + [fixed.pad_code] * fixed.num_codebooks)
    batch, mask = left_pad(prompts, pad)
    assert torch.equal(batch, entry["prefill_input_ids"])
    assert torch.equal(mask, entry["prefill_attention_mask"].bool())


def test_session_turns(fixture: dict[str, Any], fixed: RealtimeLayout, published: RealtimeLayout) -> None:
    closing = fixed.open_turn_rows("user", first=False)[: 1 + len(fixed.encode("\n"))]
    for number, entry in enumerate(fixture["stream"]["turns"]):
        want = entry["turn_input_ids"]
        turn = Turn("user", entry["user_text"], torch.tensor(entry["user_codes"]))
        spoken = torch.cat([published.turn_rows(turn, number == 0), published.open_turn_rows("assistant", first=False)])
        voice = voice_of(want, published)
        ensemble = published.ensemble_rows(voice if len(voice) else None)
        if number:
            assert torch.equal(spoken, want)
            assert torch.equal(fixed.turn_rows(turn, first=False), published.turn_rows(turn, first=False))
            continue
        assert torch.equal(torch.cat([ensemble, spoken]), want)
        prompt = Conversation(reference=voice if len(voice) else None, turns=[turn])
        assert torch.equal(published.conversation(prompt), want)
        # The fixed rows differ by nothing but the end of a turn that never was.
        expected = torch.cat([ensemble, spoken[len(closing) :]])
        assert torch.equal(fixed.conversation(prompt), expected)
        assert torch.equal(want[len(ensemble) : len(ensemble) + len(closing)], closing)
