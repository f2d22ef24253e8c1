"""How fast a run goes: positions per second, share of time spent waiting for data, model FLOPs utilisation."""

import time

import torch

PEAK_FLOPS_PER_S = {"NVIDIA H100 80GB HBM3": 989.4e12, "NVIDIA H200": 989.4e12, "NVIDIA A100-SXM4-80GB": 312e12}
"""Dense bf16 peaks from the makers' data sheets; a device that is not listed has no MFU rather than a wrong one."""


def peak_flops_per_s() -> float | None:
    """Peak of the current CUDA device in bf16, None where it is unknown."""
    if not torch.cuda.is_available():
        return None
    return PEAK_FLOPS_PER_S.get(torch.cuda.get_device_name())


class Throughput:
    """Counts work between two reports; clock readings stay out of the metrics' identity (keys `perf/...`)."""

    def __init__(self) -> None:
        """Start counting now."""
        self._peak = peak_flops_per_s()
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        self._started_at = time.perf_counter()
        self._data_wait_s = 0.0
        self._positions = 0
        self._flops = 0.0

    def waited(self, seconds: float) -> None:
        """Time the step stood still for its batch."""
        self._data_wait_s += seconds

    def trained(self, positions: int, flops: float) -> None:
        """Work of one micro-batch."""
        self._positions += positions
        self._flops += flops

    def report(self) -> dict[str, float]:
        """Metrics since the last report, then start anew."""
        elapsed_s = max(time.perf_counter() - self._started_at, 1e-9)
        metrics = {
            "perf/positions_per_s": self._positions / elapsed_s,
            "perf/data_wait_frac": self._data_wait_s / elapsed_s,
            "perf/flops_per_s": self._flops / elapsed_s,
        }
        if self._peak is not None:
            metrics["perf/mfu"] = self._flops / elapsed_s / self._peak
        self.reset()
        return metrics
