import copy
import pickle

import pytest
import torch
from torch import nn

from moss.model import packed as packed_module
from moss.model.packed import PackableLinear, PackedWeight, product, worth_packing


def layer(bias: bool = False) -> PackableLinear:
    torch.manual_seed(0)
    return PackableLinear(24, 40, bias=bias)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 8, 33])
def test_a_packed_layer_gives_what_the_plain_one_gives(rows: int, bias: bool) -> None:
    linear, x = layer(bias), torch.randn(2, rows, 24)
    with torch.no_grad():
        want = linear(x)
        linear.packed.pack_(linear.weight)
        assert linear.packed.current([linear.weight]) is not None
        torch.testing.assert_close(linear(x), want, rtol=1e-5, atol=1e-5)


def test_an_outdated_copy_is_never_used() -> None:
    linear, x = layer(), torch.randn(2, 24)
    linear.packed.pack_(linear.weight)
    with torch.no_grad():
        linear.weight.mul_(2)
        assert linear.packed.current([linear.weight]) is None
        assert torch.equal(linear(x), nn.functional.linear(x, linear.weight))
        linear.packed.pack_(linear.weight)
        torch.testing.assert_close(linear(x), nn.functional.linear(x, linear.weight))
        linear.weight.data = torch.randn(40, 24)
        assert torch.equal(linear(x), nn.functional.linear(x, linear.weight))


def test_any_part_that_changes_outdates_the_whole() -> None:
    whole = torch.randn(6, 8)
    parts = [whole[:2], nn.Parameter(whole[2:].clone())]
    weight = PackedWeight()
    weight.pack_(whole, parts)
    assert weight.current(parts) is not None
    with torch.no_grad():
        parts[1].add_(1)
    assert weight.current(parts) is None


def test_training_uses_the_parameter() -> None:
    linear = layer()
    linear.packed.pack_(linear.weight)
    linear(torch.randn(2, 24)).sum().backward()
    assert linear.weight.grad is not None


def test_copies_and_pickles_leave_the_packed_weights_behind() -> None:
    linear, x = layer(), torch.randn(2, 24)
    linear.packed.pack_(linear.weight)
    for other in (copy.deepcopy(linear), pickle.loads(pickle.dumps(linear))):
        assert other.packed.current([other.weight]) is None
        with torch.no_grad():
            torch.testing.assert_close(other(x), linear(x))


def test_only_what_is_small_and_single_precision_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worth_packing(layer())
    assert not worth_packing(layer().bfloat16())
    assert not worth_packing(layer().to("meta"))
    monkeypatch.setattr(packed_module, "MAX_PACKED_BYTES", 24 * 40 * 4 - 1)
    assert not worth_packing(layer())


def test_without_a_copy_it_is_a_plain_product() -> None:
    x, weight = torch.randn(3, 24), torch.randn(40, 24)
    assert torch.equal(product(x, weight, None), nn.functional.linear(x, weight))
