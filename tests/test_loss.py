"""Cross-entropy as sum and count: chunks, cuts into micro-batches and weights change nothing they should not."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from moss.errors import ConfigError
from moss.loss import LossSums, channel_loss_sums, expand_channel_weights, weighted_mean
from moss.spec import IGNORE_LABEL

SIZES = [30, 11, 11, 11]


@pytest.fixture
def case() -> tuple[Tensor, Tensor, list[Tensor]]:
    """States (40, 4, 8), labels (40, 4) with gaps, and one head per channel."""
    random = torch.Generator().manual_seed(0)
    states = torch.randn(40, 4, 8, generator=random)
    labels = torch.stack([torch.randint(0, size, (40,), generator=random) for size in SIZES], dim=1)
    labels[torch.rand(labels.shape, generator=random) < 0.3] = IGNORE_LABEL
    heads = [torch.randn(size, 8, generator=random) for size in SIZES]
    return states, labels, heads


def with_gradients(case: tuple[Tensor, Tensor, list[Tensor]], chunk: int) -> tuple[Tensor, list[Tensor]]:
    states, labels, heads = case
    leaves = [tensor.clone().requires_grad_() for tensor in (states, *heads)]
    result = channel_loss_sums(leaves[0], labels, lambda channel: leaves[1 + channel], max_chunk_positions=chunk)
    weighted_mean(result.sums, result.counts, None).backward()
    return result.sums.detach(), [leaf.grad for leaf in leaves if leaf.grad is not None]


def test_sums_and_counts_are_those_of_plain_cross_entropy(case: tuple[Tensor, Tensor, list[Tensor]]) -> None:
    states, labels, heads = case
    result = channel_loss_sums(states, labels, heads.__getitem__)
    assert torch.equal(result.counts, (labels != IGNORE_LABEL).sum(dim=0))
    for channel, head in enumerate(heads):
        logits = functional.linear(states[:, channel], head)
        want = functional.cross_entropy(logits, labels[:, channel], reduction="sum")
        torch.testing.assert_close(result.sums[channel], want)


@pytest.mark.parametrize("chunk", [1, 7, 26])
def test_chunks_change_neither_loss_nor_gradients(case: tuple[Tensor, Tensor, list[Tensor]], chunk: int) -> None:
    whole_sums, whole = with_gradients(case, 4096)
    sums, gradients = with_gradients(case, chunk)
    torch.testing.assert_close(sums, whole_sums, rtol=1e-6, atol=0)
    assert len(gradients) == len(whole) == 5
    for mine, theirs in zip(gradients, whole, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_scales_multiply_the_sums_and_leave_the_counts(case: tuple[Tensor, Tensor, list[Tensor]]) -> None:
    states, labels, heads = case
    plain = channel_loss_sums(states, labels, heads.__getitem__)
    scales = torch.tensor([1.0, 4.0, 4.0, 0.5])
    scaled = channel_loss_sums(states, labels, heads.__getitem__, scales=scales)
    assert torch.equal(scaled.sums, plain.sums * scales)
    assert torch.equal(scaled.counts, plain.counts)


def test_one_state_for_all_channels_may_be_a_view(case: tuple[Tensor, Tensor, list[Tensor]]) -> None:
    states, labels, heads = case
    shared = states[:, :1].expand(-1, 4, -1)
    want = channel_loss_sums(shared.contiguous(), labels, heads.__getitem__)
    assert torch.equal(channel_loss_sums(shared, labels, heads.__getitem__).sums, want.sums)


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.5, 0.0, 2.0])])
def test_cut_into_micro_batches_gives_the_same_loss(
    case: tuple[Tensor, Tensor, list[Tensor]], weights: Tensor | None
) -> None:
    states, labels, heads = case
    whole = channel_loss_sums(states, labels, heads.__getitem__)
    parts = [
        channel_loss_sums(h, y, heads.__getitem__)
        for h, y in zip(states.split([3, 17, 20]), labels.split([3, 17, 20]), strict=True)
    ]
    added = parts[0] + parts[1] + parts[2]
    assert torch.equal(added.counts, whole.counts)
    want = weighted_mean(whole.sums, whole.counts, weights)
    assert abs(weighted_mean(added.sums, added.counts, weights) - want) <= 1e-6 * want
    # What training does: every micro-batch is divided by the counts of the whole step, and the shares are added.
    shares = sum(weighted_mean(part.sums, whole.counts, weights) for part in parts)
    assert abs(shares - want) <= 1e-6 * want


def test_channel_without_targets_adds_nothing() -> None:
    sums, counts = torch.tensor([4.0, 0.0]), torch.tensor([2, 0])
    assert weighted_mean(sums, counts, None) == 2.0
    assert weighted_mean(sums, counts, torch.tensor([1.0, 1.0])) == 1.0
    empty = channel_loss_sums(torch.zeros(3, 2, 8), torch.full((3, 2), IGNORE_LABEL), lambda _: torch.zeros(5, 8))
    assert empty.sums.tolist() == [0.0, 0.0]
    assert weighted_mean(empty.sums, empty.counts, None) == 0.0
    assert isinstance(empty + empty, LossSums)


def test_weights_of_the_channels_that_are_there() -> None:
    sums, counts = torch.tensor([4.0, 0.0, 9.0]), torch.tensor([2, 0, 3])
    weights = torch.tensor([1.0, 2.0, 3.0])
    assert weighted_mean(sums, counts, weights) == 11 / 6
    assert weighted_mean(sums, counts, weights, only_present=True) == 11 / 4
    assert weighted_mean(sums, counts, None, only_present=True) == 13 / 5
    # One loss for each sample of a batch, with channels of its own.
    each = weighted_mean(sums.diag(), counts.diag(), weights, only_present=True)
    assert each.tolist() == [2.0, 0.0, 3.0]


@pytest.mark.parametrize(
    ("weights", "num_codebooks", "expanded"),
    [
        (None, 3, None),
        ([1, 6], 3, [1.0, 2.0, 2.0, 2.0]),
        ([1, 6], 1, [1.0, 6.0]),
        ([1, 2, 3, 4], 3, [1.0, 2.0, 3.0, 4.0]),
    ],
)
def test_forms_of_weights(weights: list[float] | None, num_codebooks: int, expanded: list[float] | None) -> None:
    result = expand_channel_weights(weights, num_codebooks)
    assert (None if result is None else result.tolist()) == expanded


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0, 3.0], r"has 3 values; give 2 \(text, audio in all\) or 4 \(text and 3 codebooks\)"),
        ([1.0, -1.0], r"\[1\.0, -1\.0\]: weights are ≥ 0 and at least one is positive"),
        ([0.0, 0.0], "at least one is positive"),
    ],
)
def test_wrong_weights(weights: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand_channel_weights(weights, 3)
