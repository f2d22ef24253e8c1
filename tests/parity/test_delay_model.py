"""MossTTSDelay against numbers of the published implementation: model, loss, layouts, collation."""

from typing import Any

import pytest
import torch
from torch import Tensor

from moss.data.text_tokenizer import FileTextTokenizer
from moss.loss import LossSums, channel_loss_sums, weighted_mean
from moss.model.delay import DelayModel
from moss.model.hf_map import delay_config
from moss.sequence.delay import apply_delay, undo_delay
from moss.sequence.labels import next_position_labels, target_counts
from moss.sequence.layout import DelayLayout, left_pad
from moss.sequence.prompt import PromptMode, UserPrompt, content_string, user_message
from moss.spec import IGNORE_LABEL
from tests.parity.fixture_files import fixture_path, load_fixture
from tests.parity.gradients import check_gradients


def model_of(entry: dict[str, Any]) -> DelayModel:
    model = DelayModel(delay_config({**entry["config"], "language_config": entry["lang"]}))
    model.load_state_dict(entry["state_dict"], strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def fixture() -> dict[str, Any]:
    return load_fixture("ref_delay.pt.gz")


@pytest.fixture(scope="module")
def small(fixture: dict[str, Any]) -> tuple[dict[str, Any], DelayModel]:
    return fixture["small"], model_of(fixture["small"])


def test_strict_state_dict(small: tuple[dict[str, Any], DelayModel]) -> None:
    entry, model = small
    assert set(model.state_dict()) == set(entry["state_dict"])


def test_input_embeddings(small: tuple[dict[str, Any], DelayModel]) -> None:
    entry, model = small
    assert torch.allclose(model.embed(entry["inputs"]["input_ids"]), entry["inputs_embeds"], atol=1e-5)


def test_hidden_states_and_logits(small: tuple[dict[str, Any], DelayModel]) -> None:
    entry, model = small
    valid = entry["inputs"]["attention_mask"]
    captured: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda m, i, o: captured.append(o)) for layer in model.language_model.layers]
    with torch.no_grad():
        hidden = model(entry["inputs"]["input_ids"], attention_mask=valid).hidden
    for hook in hooks:
        hook.remove()
    expected = entry["hidden_states"]
    assert len(expected) == len(captured) + 1
    for got, want in zip([entry["inputs_embeds"], *captured[:-1], hidden], expected, strict=True):
        assert torch.allclose(got[valid], want[valid], atol=1e-5)
    assert len(entry["logits"]) == model.num_channels
    for channel, want in enumerate(entry["logits"]):
        got = model.channel_logits(hidden, channel)
        if channel:
            assert torch.isinf(got[..., -1]).all()
            assert torch.isinf(want[..., -1]).all()
            got, want = got[..., :-1], want[..., :-1]
        assert torch.allclose(got[valid], want[valid], atol=1e-5)


def test_collate(small: tuple[dict[str, Any], DelayModel]) -> None:
    entry, model = small
    check_collate(entry["items"], entry["inputs"], model.config.pad_token_id, model.config.codebook_size)


def check_collate(items: list[dict[str, Tensor]], want: dict[str, Tensor], pad_token: int, pad_code: int) -> None:
    """Shift, left padding and label masks of whole conversations give the published batch."""
    num_codebooks = items[0]["input_ids"].shape[1] - 1
    pad = torch.tensor([pad_token] + [pad_code] * num_codebooks)
    shifted = []
    for item in items:
        prompt = len(item["input_ids"]) - int(item["loss_mask"].sum())
        shifted.append(next_position_labels(item["input_ids"], prompt, pad_code))
    inputs, mask = left_pad([inputs for inputs, _ in shifted], pad)
    labels, _ = left_pad([labels for _, labels in shifted], torch.full_like(pad, IGNORE_LABEL))
    assert torch.equal(inputs, want["input_ids"])
    assert torch.equal(mask, want["attention_mask"].bool())
    assert torch.equal(labels, want["labels"])


def loss_case_names() -> list[str]:
    return list(load_fixture("ref_delay.pt.gz")["small"]["loss_cases"])


def loss_sums(model: DelayModel, hidden: Tensor, labels: Tensor) -> LossSums:
    seen = model.supervised(hidden, labels)
    return channel_loss_sums(seen.states, seen.labels, model.head_weight, scales=seen.scales)


@pytest.mark.parametrize("name", loss_case_names())
def test_loss_and_gradients(fixture: dict[str, Any], name: str) -> None:
    entry = fixture["small"]
    case = entry["loss_cases"][name]
    model = model_of(entry)
    inputs = entry["inputs"]
    hidden = model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).hidden
    weights = None if case["weights"] is None else torch.tensor(case["weights"])
    per_sample = [loss_sums(model, h, y) for h, y in zip(hidden, inputs["labels"], strict=True)]
    sums = torch.stack([sample.sums for sample in per_sample])
    counts = torch.stack([sample.counts for sample in per_sample])
    assert torch.allclose(sums, case["all_sum_losses"], rtol=1e-6, atol=1e-4)
    assert torch.equal(counts, case["all_token_nums"])
    assert torch.allclose(sums.sum(0) / counts.sum(0).clamp(min=1), case["channel_losses"], atol=1e-6)
    total = loss_sums(model, hidden, inputs["labels"])
    loss = weighted_mean(total.sums, total.counts, weights)
    assert float(loss.detach()) == pytest.approx(float(case["loss"]), abs=1e-6)
    if weights is not None:
        assert torch.allclose(weighted_mean(sums, counts, weights), case["sample_losses"], atol=1e-6)
    loss.backward()
    check_gradients(model, case["grads"])


def test_packed_equals_padded(small: tuple[dict[str, Any], DelayModel]) -> None:
    entry, model = small
    inputs, valid = entry["inputs"]["input_ids"], entry["inputs"]["attention_mask"].bool()
    lengths = valid.sum(1).tolist()
    with torch.no_grad():
        padded = model(inputs, attention_mask=valid).hidden[valid]
        packed = model(inputs[valid].unsqueeze(0), document_lengths=lengths).hidden[0]
    assert torch.allclose(packed, padded, atol=1e-5)


def test_delay_pattern(fixture: dict[str, Any]) -> None:
    entry = fixture["delay_pattern"]
    assert torch.equal(apply_delay(entry["codes"], entry["pad"]), entry["delayed"])
    assert torch.equal(undo_delay(entry["delayed"]), entry["restored"])


def layout_of(fixture: dict[str, Any]) -> DelayLayout:
    tokenizer = FileTextTokenizer(fixture_path("toy_tokenizer_delay_local.json.gz"))
    processor = fixture["processor"]
    return DelayLayout(
        encode=tokenizer.encode,
        special=tokenizer.special_tokens,
        num_codebooks=processor["n_vq"],
        # A text position holds nothing but the pad code.
        codebook_size=int(next(iter(processor["layouts"].values()))["generation"][0, 1]),
    )


def layout_names() -> list[str]:
    return list(load_fixture("ref_delay.pt.gz")["processor"]["layouts"])


@pytest.mark.parametrize("name", layout_names())
def test_processor_layout(fixture: dict[str, Any], name: str) -> None:
    processor, layout = fixture["processor"], layout_of(fixture)
    case = processor["layouts"][name]
    prompt = UserPrompt(**case["user"])
    assert content_string(user_message(prompt)) == case["content"]
    assert torch.equal(layout.conversation(prompt), case["generation"])
    assert torch.equal(layout.conversation(prompt, [processor["tgt"]], PromptMode.loss), case["loss"])
    continued = layout.conversation(prompt, [processor["prefix"]], PromptMode.continuation)
    assert torch.equal(continued, case["continuation"])


def test_processor_dataset(fixture: dict[str, Any]) -> None:
    dataset, layout = fixture["processor"]["dataset"], layout_of(fixture)
    items = []
    for record, want in zip(dataset["records"], dataset["items"], strict=True):
        references = record.get("reference_audio_codes")
        if references is None and "ref_audio_codes" in record:
            references = [record["ref_audio_codes"]]
        prompt = UserPrompt(
            text=record["text"],
            language=record.get("language"),
            reference=None if references is None else [None if r is None else torch.tensor(r) for r in references],
        )
        codes = torch.tensor(record["audio_codes"])
        rows = layout.conversation(prompt, [codes], PromptMode.loss)
        prompt_positions = len(layout.conversation(prompt))
        assert torch.equal(rows, want["input_ids"])
        assert len(rows) - prompt_positions == int(want["loss_mask"].sum())
        labels = next_position_labels(rows, prompt_positions, layout.pad_code)[1]
        counts = (labels != IGNORE_LABEL).sum(0)
        assert torch.equal(counts, target_counts(torch.tensor([len(codes)]), layout.num_codebooks))
        items.append(want)
    check_collate(items, dataset["batch"], layout.special.pad, layout.codebook_size)
