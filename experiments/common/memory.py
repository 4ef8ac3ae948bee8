"""Time and peak memory of a piece of work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def clock(device: str) -> float:
    """Seconds: CPU time of this process on a CPU, which other work on the machine hardly changes; elsewhere wall time,
    with the device idle.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.process_time() if device == "cpu" else time.perf_counter()


@dataclass
class Peak:
    """Bytes above what was held before; None where the system does not tell."""

    bytes: int | None = None


@contextmanager
def peak_memory(device: str = "cpu") -> Iterator[Peak]:
    """Measures the block: the device's allocator, or on Linux this process's resident memory."""
    peak = Peak()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    try:
        _RESET.write_text("5")  # the high-water mark becomes what is resident now
        resident = _status("VmRSS")
    except OSError:  # another system, or a container that forbids it
        yield peak
        return
    yield peak
    peak.bytes = max(0, _status("VmHWM") - resident)


def _status(key: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {key}")
