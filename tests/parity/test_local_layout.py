"""MossTTSLocal v1: prompt rows, training rows and collation against the published processor and dataset."""

from typing import Any

import pytest
import torch

from moss.data.text_tokenizer import FileTextTokenizer
from moss.sequence.layout import LocalLayout, left_pad
from moss.sequence.prompt import PromptMode, UserPrompt, content_string, user_message
from moss.spec import IGNORE_LABEL
from tests.parity.fixture_files import fixture_path, load_fixture


@pytest.fixture(scope="module")
def processor() -> dict[str, Any]:
    return load_fixture("ref_local.pt.gz")["processor"]


@pytest.fixture(scope="module")
def layout(processor: dict[str, Any]) -> LocalLayout:
    tokenizer = FileTextTokenizer(fixture_path("toy_tokenizer_delay_local.json.gz"))
    return LocalLayout(
        encode=tokenizer.encode,
        special=tokenizer.special_tokens,
        num_codebooks=processor["n_vq"],
        # A text position holds nothing but the pad code.
        codebook_size=int(next(iter(processor["layouts"].values()))["generation"][0, 1]),
    )


@pytest.mark.parametrize("name", list(load_fixture("ref_local.pt.gz")["processor"]["layouts"]))
def test_processor_layout(processor: dict[str, Any], layout: LocalLayout, name: str) -> None:
    case = processor["layouts"][name]
    prompt = UserPrompt(**case["user"])
    assert content_string(user_message(prompt, layout.template)) == case["content"]
    assert torch.equal(layout.conversation(prompt), case["generation"])
    assert torch.equal(layout.conversation(prompt, [processor["tgt"]], PromptMode.loss), case["loss"])
    continued = layout.conversation(prompt, [processor["prefix"]], PromptMode.continuation)
    assert torch.equal(continued, case["continuation"])


def record_prompt(record: dict[str, Any]) -> UserPrompt:
    """The user turn of a published training record."""
    references = record.get("reference_audio_codes")
    if references is None and "ref_audio_codes" in record:
        references = [record["ref_audio_codes"]]
    return UserPrompt(
        reference=None if references is None else [None if r is None else torch.tensor(r) for r in references],
        **{
            name: record.get(name)
            for name in ("text", "language", "instruction", "tokens", "quality", "sound_event", "ambient_sound")
        },
    )


def test_dataset_and_collation(processor: dict[str, Any], layout: LocalLayout) -> None:
    dataset = processor["dataset"]
    examples = []
    for record, want in zip(dataset["records"], dataset["items"], strict=True):
        prompt, codes = record_prompt(record), torch.tensor(record["audio_codes"])
        assert torch.equal(layout.conversation(prompt, [codes], PromptMode.loss), want["input_ids"])
        inputs, labels = layout.example(prompt, codes)
        assert torch.equal(inputs, want["input_ids"][:-1])
        assert torch.equal((labels != IGNORE_LABEL).any(1), want["loss_mask"])
        assert torch.equal((labels != IGNORE_LABEL).sum(0), layout.target_counts([len(codes)]))
        assert layout.num_positions(prompt, len(codes)) == len(inputs)
        examples.append((inputs, labels))
    pad = torch.tensor([layout.special.pad] + [layout.pad_code] * layout.num_codebooks)
    inputs, mask = left_pad([inputs for inputs, _ in examples], pad)
    labels, _ = left_pad([labels for _, labels in examples], torch.full_like(pad, IGNORE_LABEL))
    want = dataset["batch"]
    assert torch.equal(inputs, want["input_ids"])
    assert torch.equal(mask, want["attention_mask"].bool())
    assert torch.equal(labels, want["labels"])
