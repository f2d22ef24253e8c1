"""Discriminators and the audio-to-text model learn by themselves, at their own pace."""

import copy
from pathlib import Path

import pytest
import torch

from moss.errors import DataError
from moss.training.optim import lr_factor
from moss.training.tokenizer_companions import Adversary, Listener
from tests.training.tokenizer_runs import ADVERSARIAL, EVERYTHING, tiny_run


def waves(seed: int) -> torch.Tensor:
    return torch.randn(2, 400, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.fixture
def adversary(tmp_path: Path) -> Adversary:
    torch.manual_seed(0)
    return Adversary(tiny_run(tmp_path, tmp_path / "runs", **ADVERSARIAL), 24_000)


def test_discriminators_learn_to_tell_and_pull_nothing(adversary: Adversary) -> None:
    generated = waves(1).requires_grad_()
    losses = [float(adversary.discriminate(generated, waves(0).cumsum(1), 6 + i % 6, 1.0)) for i in range(60)]
    assert losses[-1] < 0.7 * losses[0]
    assert generated.grad is None
    assert adversary.last_norm > 0
    assert all(parameter.grad is None for parameter in adversary.parameters())


def test_judgement_pulls_the_generator_alone_and_waits(adversary: Adversary) -> None:
    generated = waves(1).requires_grad_()
    assert adversary.judge(generated, waves(0), 7, 1.0) == {}
    losses = adversary.judge(generated, waves(0), 8, 1.0)
    assert losses.keys() == {"adversarial", "feature"}
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert generated.grad is not None
    assert generated.grad.abs().max() > 0
    assert all(parameter.grad is None and parameter.requires_grad for parameter in adversary.network.parameters())


def test_the_rate_is_counted_from_the_first_step(adversary: Adversary) -> None:
    # warmup_steps=2, max_steps=12, from_step=6
    for step in (6, 7, 9):
        adversary.discriminate(waves(1), waves(0), step, 1.0)
        expected = 1e-3 * lr_factor(step - 6, 2, 6, 0.05)
        assert [group["lr"] for group in adversary._optimizer.param_groups] == pytest.approx([expected] * 2)


def test_a_gradient_that_is_not_finite_changes_nothing(adversary: Adversary) -> None:
    before = [parameter.clone() for parameter in adversary.parameters()]
    with pytest.raises(DataError, match=r"step 9: the gradient of the discriminators is not finite; lower its rate"):
        adversary.discriminate(waves(1) * float("nan"), waves(0), 9, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, adversary.parameters(), strict=True))


def test_state_continues_where_it_was(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, tmp_path / "runs", **EVERYTHING)
    first, second = (Listener(config, 12, 512, 3) for _ in range(2))
    inputs = torch.randn(2, 5, 12), torch.tensor([5, 3]), torch.tensor([[1, 2], [3, 0]]), torch.tensor([2, 1])

    def learn(listener: Listener, step: int) -> float:
        loss = listener.network(*inputs, torch.tensor([0, 1]))
        loss.backward()
        listener.learn(step)
        return float(loss.detach())

    learn(first, 0)
    second.restore(copy.deepcopy(first.state()))
    # Asked for before its first step, it still knows the moments.
    second.restore(second.state())
    assert [learn(first, 1), learn(first, 2)] == [learn(second, 1), learn(second, 2)]
