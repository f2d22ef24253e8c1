"""A gradient that is not finite never reaches the optimizer, and the utterances of its step are named."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from moss.errors import DataError
from moss.training.callbacks import StopOnNonFinite, progress_text


def module_with_gradient(value: float) -> Any:
    layer: Any = nn.Linear(2, 1)
    layer.weight.grad = torch.tensor([[1.0, value]])
    logged: dict[str, float] = {}
    layer.log = lambda key, number: logged.update({key: float(number)})
    layer.logged = logged
    return layer


def start(callback: StopOnNonFinite, step: int, *names: str) -> Any:
    trainer: Any = SimpleNamespace(global_step=step)
    callback.on_train_batch_start(trainer, None, SimpleNamespace(utterance_ids=list(names)), 0)  # type: ignore[arg-type]
    return trainer


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_all_rows_of_the_step_are_named(value: float) -> None:
    callback = StopOnNonFinite()
    start(callback, 6, "before")
    start(callback, 7, "a", "b")
    trainer = start(callback, 7, "c")
    message = r"step 7: the gradient is not finite; utterances: a, b, c\. Look at them, or lower optim\.lr; the last"
    with pytest.raises(DataError, match=message):
        callback.on_before_optimizer_step(trainer, module_with_gradient(value), None)


def test_a_finite_norm_is_logged() -> None:
    callback = StopOnNonFinite()
    module = module_with_gradient(2.0)
    callback.on_before_optimizer_step(start(callback, 0, "a"), module, None)
    assert module.logged == {"optim/grad_norm": pytest.approx(5**0.5)}


def test_progress_says_na_for_an_unknown_peak_and_a_share_for_a_known_one() -> None:
    metrics = {"train/loss": 1.25, "perf/positions_per_s": 1500.4, "perf/data_wait_frac": 0.02}
    assert progress_text(metrics) == "train/loss 1.25  1500 positions/s  data wait 2.0%  MFU n/a"
    assert progress_text(metrics | {"perf/mfu": 0.415}).endswith("MFU 41.5%")
    assert progress_text({}) == ""
