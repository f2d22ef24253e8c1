"""MossTTSLocal v1.5: prompt rows, training rows and collation against the published processor and dataset."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from moss.config.model import LocalV15ModelConfig
from moss.data.text_tokenizer import FileTextTokenizer
from moss.sequence.layout import LocalV15Layout, build_layout, left_pad
from moss.sequence.prompt import PromptMode
from moss.spec import IGNORE_LABEL
from tests.parity.fixture_files import fixture_path, load_fixture
from tests.parity.test_local_layout import record_prompt


@pytest.fixture(scope="module")
def processor() -> dict[str, Any]:
    return load_fixture("ref_local_v15.pt.gz")["processor"]


@pytest.fixture(scope="module")
def fixed(processor: dict[str, Any]) -> LocalV15Layout:
    tokenizer = FileTextTokenizer(fixture_path("toy_tokenizer_local_v15.json.gz"))
    first = processor["generation"]
    # A text position holds nothing but the pad code.
    config = LocalV15ModelConfig(num_codebooks=first.shape[1] - 1, codebook_size=int(first[0, 1]))
    layout = build_layout(config, tokenizer.encode)
    assert isinstance(layout, LocalV15Layout)
    return layout


@pytest.fixture(scope="module")
def published(fixed: LocalV15Layout) -> LocalV15Layout:
    return dataclasses.replace(fixed, reference=True)


def last_block(rows: Tensor, layout: LocalV15Layout) -> Tensor:
    """The codes of the assistant's turn."""
    return rows[rows[:, 0] == layout.special.gen_slot][:, 1:]


def test_generation_rows(processor: dict[str, Any], fixed: LocalV15Layout, published: LocalV15Layout) -> None:
    prompt = record_prompt(processor["records"][0])
    assert torch.equal(fixed.conversation(prompt), processor["generation"])
    assert torch.equal(published.conversation(prompt), processor["generation"])


def test_published_loss_rows(processor: dict[str, Any], published: LocalV15Layout) -> None:
    prompt, want = record_prompt(processor["records"][0]), processor["loss"]
    assert torch.equal(published.conversation(prompt, [last_block(want, published)], PromptMode.loss), want)


def test_fixed_loss_rows_begin_with_the_generation_rows(processor: dict[str, Any], fixed: LocalV15Layout) -> None:
    prompt, want = record_prompt(processor["records"][0]), processor["loss"]
    codes = last_block(want, fixed)
    rows = fixed.conversation(prompt, [codes], PromptMode.loss)
    opened = processor["generation"]
    assert torch.equal(rows[: len(opened)], opened)
    # The answer itself is the published one.
    assert torch.equal(rows[len(opened) :], want[-(len(codes) + 3) :])


def test_continuation_rows(processor: dict[str, Any], fixed: LocalV15Layout, published: LocalV15Layout) -> None:
    prompt, want = record_prompt(processor["records"][0]), processor["continuation"]
    codes = last_block(want, published)
    assert torch.equal(published.conversation(prompt, [codes], PromptMode.continuation), want)
    rows = fixed.conversation(prompt, [codes], PromptMode.continuation)
    # The references stay, so that the prompt is that of generation.
    assert torch.equal(rows[: -len(codes)], processor["generation"])
    assert torch.equal(rows[-len(codes) :], want[-len(codes) :])


def test_published_dataset_and_collation(processor: dict[str, Any], published: LocalV15Layout) -> None:
    examples = []
    for record, want in zip(processor["records"], processor["items"], strict=True):
        prompt, codes = record_prompt(record), torch.tensor(record["audio_codes"])
        inputs, labels = published.example(prompt, codes)
        assert torch.equal(inputs, want["input_ids"][:-1])
        assert torch.equal((labels != IGNORE_LABEL).any(1), want["loss_mask"])
        assert published.num_positions(prompt, len(codes)) == len(inputs)
        examples.append((inputs, labels))
    pad = torch.tensor([published.special.pad] + [published.pad_code] * published.num_codebooks)
    inputs, mask = left_pad([inputs for inputs, _ in examples], pad)
    labels, _ = left_pad([labels for _, labels in examples], torch.full_like(pad, IGNORE_LABEL))
    want = processor["batch"]
    assert torch.equal(inputs, want["input_ids"])
    assert torch.equal(mask, want["attention_mask"].bool())
    assert torch.equal(labels, want["labels"])


def test_no_frame_is_lost_by_default(processor: dict[str, Any], fixed: LocalV15Layout) -> None:
    for record in processor["records"]:
        prompt, codes = record_prompt(record), torch.tensor(record["audio_codes"])
        inputs, labels = fixed.example(prompt, codes)
        supervised = labels[(labels[:, 1:] != IGNORE_LABEL).any(1)]
        assert torch.equal(supervised[:, 1:], codes)
        assert (supervised[:, 0] == fixed.special.gen_slot).all()
        assert labels[labels[:, 0] != IGNORE_LABEL][-1, 0] == fixed.special.audio_end
        assert torch.equal((labels != IGNORE_LABEL).sum(0), fixed.target_counts([len(codes)]))
        assert fixed.num_positions(prompt, len(codes)) == len(inputs)
