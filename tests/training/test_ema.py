"""The average in numbers, its jumps, its round trip, and that a network gets its own weights back."""

import pytest
import torch
from torch import Tensor, nn

from moss.errors import CheckpointError
from moss.training.ema import EmaWeights, warm_decay


def network(seed: int = 0) -> nn.Sequential:
    """Parameters, buffers, and a counter that cannot be averaged."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Embedding(5, 2))


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def step(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.ones_like(parameter))
        model[1].num_batches_tracked += 1


def test_average_is_the_weighted_sum_of_all_steps() -> None:
    model = network()
    start = copies(model)
    average = EmaWeights(model)
    for _ in range(3):
        step(model)
        average.update(model, 0.5)
    # 0 * 1/8 + 1 * 1/8 + 2 * 1/4 + 3 * 1/2
    torch.testing.assert_close(average.state_dict()["0.weight"], start["0.weight"] + 2.125)
    assert average.state_dict()["1.num_batches_tracked"] == 3
    assert average.state_dict()["1.num_batches_tracked"].dtype == torch.int64


def test_no_decay_is_the_last_step() -> None:
    model = network()
    average = EmaWeights(model)
    step(model)
    average.update(model, 0.0)
    for name, tensor in average.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name])


def test_the_average_is_its_own_memory() -> None:
    model = network()
    average = EmaWeights(model)
    before = average.state_dict()
    step(model)
    before_again = average.state_dict()
    assert all(torch.equal(before[name], before_again[name]) for name in before)
    before_again["0.weight"].zero_()
    assert average.state_dict()["0.weight"].any()


def test_copy_from_takes_only_what_the_prefix_names() -> None:
    model = network()
    average = EmaWeights(model)
    before = average.state_dict()
    step(model)
    average.copy_from(model, "0.")
    for name, tensor in average.state_dict().items():
        assert torch.equal(tensor, (model.state_dict() if name.startswith("0.") else before)[name])
    average.copy_from(model)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in average.state_dict().items())


@pytest.mark.parametrize("rows", [torch.tensor([1, 3]), torch.tensor([False, True, False, True, False])])
def test_copy_rows(rows: Tensor) -> None:
    model = network()
    average = EmaWeights(model)
    before = average.state_dict()["2.weight"]
    step(model)
    average.copy_rows(model, "2.weight", rows)
    after = average.state_dict()["2.weight"]
    assert torch.equal(after[[1, 3]], model.state_dict()["2.weight"][[1, 3]])
    assert torch.equal(after[[0, 2, 4]], before[[0, 2, 4]])


def test_round_trip_goes_on_bit_for_bit() -> None:
    model = network()
    average = EmaWeights(model)
    step(model)
    average.update(model, 0.9)
    resumed = EmaWeights(network(7))
    resumed.load_state_dict(average.state_dict())
    step(model)
    for one in (average, resumed):
        one.update(model, 0.9)
    first, second = average.state_dict(), resumed.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_copy_to() -> None:
    model, other = network(), network(7)
    EmaWeights(model).copy_to(other)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in other.state_dict().items())


def test_swap_gives_the_weights_back_even_after_an_error() -> None:
    model = network()
    average = EmaWeights(model)
    step(model)
    own = copies(model)
    parameters = list(model.parameters())
    with pytest.raises(RuntimeError, match="scoring failed"), average.swapped_in(model):
        assert torch.equal(model[0].weight, average.state_dict()["0.weight"])
        assert not torch.equal(model[0].weight, own["0.weight"])
        raise RuntimeError("scoring failed")
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())
    # An optimizer holds the same tensors before and after.
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))


def test_another_models_average_is_refused_with_everything_that_differs() -> None:
    saved = EmaWeights(network()).state_dict()
    saved["extra"] = saved.pop("0.bias")
    saved["2.weight"] = torch.zeros(6, 2)
    message = (
        r"0\.bias is missing; extra is unknown; 2\.weight is \(6, 2\), expected \(5, 2\)\. Resume with the settings"
    )
    with pytest.raises(CheckpointError, match=message):
        EmaWeights(network()).load_state_dict(saved)


def test_warm_decay_rises_to_the_limit() -> None:
    decays = [warm_decay(0.99, step) for step in (0, 1, 8, 890, 10_000)]
    assert decays == pytest.approx([0.1, 2 / 11, 0.5, 0.99, 0.99])
    assert warm_decay(0.0, 100) == 0
