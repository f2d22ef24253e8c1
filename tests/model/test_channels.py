"""Fused tables: one gather, one matrix product, no second copy."""

import pytest
import torch
from torch import nn

from moss.model.channels import ChannelTables, embed_labels, weight_of
from moss.spec import IGNORE_LABEL


def tables_of(rows: int = 6, zero_from: int | None = None) -> tuple[nn.ModuleList, ChannelTables]:
    torch.manual_seed(0)
    modules = nn.ModuleList(nn.Embedding(rows, 4) for _ in range(3))
    return modules, ChannelTables(list(modules), zero_from=zero_from)


def is_fused(tables: ChannelTables) -> bool:
    return tables.stacked is not None


@pytest.mark.parametrize("zero_from", [None, 5])
@pytest.mark.parametrize("count", [1, 2, 3])
@torch.no_grad()
def test_one_gather_is_the_sum_of_the_tables(zero_from: int | None, count: int) -> None:
    _, tables = tables_of(5 if zero_from else 6, zero_from)
    tokens = torch.randint(0, 6, (2, 7, count), generator=torch.Generator().manual_seed(1))
    assert int(tokens.max()) == 5
    text = torch.randn(2, 7, 4)
    want = tables.add_to(text, tokens)
    tables.fuse_()
    torch.testing.assert_close(text + tables.fused_embed(tokens), want, rtol=0, atol=1e-6)
    torch.testing.assert_close(tables.add_to(text, tokens), want, rtol=0, atol=1e-6)


def test_ids_beyond_the_table_are_zero() -> None:
    modules, tables = tables_of(5, 5)
    embedded = tables.embed(1, torch.tensor([4, 5]))
    assert torch.equal(embedded[0], weight_of(modules[1])[4])
    assert embedded[1].tolist() == [0.0] * 4


def test_weights_are_views_of_one_tensor() -> None:
    modules, tables = tables_of()
    assert not is_fused(tables)
    before = [weight_of(module).detach().clone() for module in modules]
    tables.fuse_()
    stacked = tables.stacked
    assert stacked is not None
    for index, module in enumerate(modules):
        weight = weight_of(module)
        assert weight.data_ptr() == stacked.data_ptr() + index * 6 * 4 * 4
        assert torch.equal(weight, before[index])
        assert weight.requires_grad
    tables.fuse_()
    assert tables.stacked is stacked


def test_moved_weights_are_no_longer_fused_until_asked() -> None:
    modules, tables = tables_of()
    tables.fuse_()
    modules.double()
    assert not is_fused(tables)
    tables.fuse_()
    assert tables.stacked is not None
    assert tables.stacked.dtype == torch.float64


def test_gradients_reach_the_tables_and_spare_padding_rows() -> None:
    table = nn.Embedding(6, 4, padding_idx=5)
    tables = ChannelTables([table])
    tables.fuse_()
    tables.add_to(torch.zeros(1, 2, 4), torch.tensor([[[2], [5]]])).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad.sum(1).tolist() == [0, 0, 4, 0, 0, 0]


@torch.no_grad()
def test_all_heads_in_one_product() -> None:
    heads = [nn.Linear(4, 6, bias=False) for _ in range(3)]
    tables = ChannelTables(heads)
    hidden = torch.randn(2, 5, 4)
    want = torch.stack([head(hidden) for head in heads], dim=2)
    assert torch.equal(tables.logits(hidden), want)
    tables.fuse_()
    torch.testing.assert_close(tables.logits(hidden), want, rtol=0, atol=1e-6)


def test_labels_without_a_target_embed_as_zero() -> None:
    table = nn.Embedding(6, 4)
    embedded = embed_labels(table, torch.tensor([3, IGNORE_LABEL, 0]))
    assert torch.equal(embedded[[0, 2]], table.weight[[3, 0]])
    assert embedded[1].tolist() == [0.0] * 4
    embedded.sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad.sum(1).tolist() == [4, 0, 0, 4, 0, 0]
