"""Speed is counted work over time; utilisation appears only where the peak is known."""

import pytest
import torch

from moss.training.throughput import PEAK_FLOPS_PER_S, Throughput, peak_flops_per_s


class Clock:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("moss.training.throughput.time.perf_counter", made)
    return made


def test_rates_since_the_last_report(clock: Clock) -> None:
    throughput = Throughput()
    throughput.trained(300, 1e6)
    throughput.trained(100, 1e6)
    throughput.waited(0.5)
    clock.now_s += 2.0
    assert throughput.report() == {
        "perf/positions_per_s": 200.0,
        "perf/data_wait_frac": 0.25,
        "perf/flops_per_s": 1e6,
    }
    clock.now_s += 1.0
    assert set(throughput.report().values()) == {0.0}


@pytest.mark.parametrize(("device", "peak"), [("NVIDIA H200", PEAK_FLOPS_PER_S["NVIDIA H200"]), ("Unheard Of", None)])
def test_utilisation_needs_a_known_peak(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, device: str, peak: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: device)
    assert peak_flops_per_s() == peak
    throughput = Throughput()
    throughput.trained(1, 1e14)
    clock.now_s += 1.0
    assert throughput.report().get("perf/mfu") == (None if peak is None else pytest.approx(1e14 / peak))


def test_without_a_device_there_is_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert peak_flops_per_s() is None
