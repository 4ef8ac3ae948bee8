"""Timing as a ratio to a plain training step, and peak memory; the JSON that every benchmark emits.

Seconds on a shared machine drift, ratios less: each phase is run in turn with the training step (A B A B ...) in one
process, and the medians are divided. Peak memory needs a process that does one phase only, so a benchmark starts
itself again for it (`peak_in_subprocess`), with the factors that the phase needs read from disk.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.model import Workload, token_loss

SCHEMA = 1
ROOT = Path(__file__).resolve().parent.parent

Phase = Callable[[], Mapping[str, float] | None]
"""Runs one phase over all batches. It may return the seconds of its parts, which are then reported in its place."""


def training_step(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """The unit: forward, summed token cross-entropy, backward with every weight gradient; no optimizer."""
    for ids in batches:
        model.zero_grad(set_to_none=True)
        token_loss(model, ids).backward()
    model.zero_grad(set_to_none=True)


def gradient_steps(model: nn.Module, objective: Any, batches: Iterable[Any]) -> None:
    """The same of any objective of msif's, over its own batches."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for batch in batches:
        model.zero_grad(set_to_none=True)
        objective.losses(objective.outputs(model, batch), batch).sum().backward()
    model.zero_grad(set_to_none=True)


@dataclass
class Timing:
    """Seconds of a phase and of the training steps run in turn with it."""

    seconds: list[float] = field(default_factory=list)
    train_seconds: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Ratio of medians, the range of the ratios of neighbours, and the raw seconds."""
        ratios = [phase / train for phase, train in zip(self.seconds, self.train_seconds, strict=True)]
        return {
            "ratio": statistics.median(self.seconds) / statistics.median(self.train_seconds),
            "ratio_range": [min(ratios), max(ratios)],
            "seconds": self.seconds,
            "train_seconds": self.train_seconds,
        }


class Stopwatch:
    """Context manager: wall seconds, summed over its uses, with the device idle at both ends of each."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.seconds = 0.0

    def __enter__(self) -> Stopwatch:
        self._start = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += self._now() - self._start

    @contextmanager
    def around(self, owner: Any, name: str) -> Iterator[None]:
        """While open, every call of `owner.name` (a function that others look up there) runs under this watch."""
        original = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self:
                return original(*args, **kwargs)

        setattr(owner, name, timed)
        try:
            yield
        finally:
            setattr(owner, name, original)

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def interleave(train: Callable[[], None], phases: Mapping[str, Phase], repeats: int, device: str) -> dict[str, Timing]:
    """Times every phase `repeats` times, each time just after a training step, after one untimed run of each.

    Repeats are the outer loop, so that a slow minute of the machine falls on all phases alike.
    """
    train()
    for phase in phases.values():
        phase()
    timings: dict[str, Timing] = {}
    for repeat in range(repeats):
        for name, phase in phases.items():
            with Stopwatch(device) as unit:
                train()
            with Stopwatch(device) as whole:
                parts = phase()
            for part, seconds in (parts or {name: whole.seconds}).items():
                timing = timings.setdefault(part, Timing())
                timing.seconds.append(seconds)
                timing.train_seconds.append(unit.seconds)
                log(f"{repeat + 1}/{repeats} {part}: {seconds:.3f} s, training step {unit.seconds:.3f} s")
    return timings


def resident_bytes(peak: bool) -> int:
    """This process's resident memory, now or at its highest.

    Linux's `/proc` comes first: there, `ru_maxrss` survives `exec`, so a child starts at its *parent's* peak.
    """
    status = Path("/proc/self/status")
    if status.exists():
        key = "VmHWM:" if peak else "VmRSS:"
        line = next(line for line in status.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_of(work: Callable[[], object], device: str) -> dict[str, int]:
    """Runs `work` once: peak bytes (allocated on a GPU, resident in this process else) and bytes held before it."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return {"peak_bytes": torch.cuda.max_memory_allocated(), "before_bytes": before}
    before = resident_bytes(peak=False)
    work()
    return {"peak_bytes": resident_bytes(peak=True), "before_bytes": before}


def peak_in_subprocess(module: str, arguments: list[str]) -> dict[str, int]:
    """Runs `python -m module arguments` in this interpreter's environment; its last line is the JSON of `peak_of`."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.rstrip("\n").split("\n")[-1])


def environment(packages: Iterable[str]) -> dict[str, Any]:
    """Versions and the machine, without its name."""
    from importlib.metadata import version

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": gpu,
        "load_average": os.getloadavg()[0],
    }


def report(
    tool: str,
    work: Workload,
    settings: Mapping[str, Any],
    packages: Iterable[str],
    timings: Mapping[str, Timing],
    memory: Mapping[str, Mapping[str, int]],
) -> dict[str, Any]:
    """The JSON of one benchmark: one entry a phase, with whatever of timing and memory was measured."""
    phases: dict[str, dict[str, Any]] = {name: timing.to_json() for name, timing in timings.items()}
    for name, peak in memory.items():
        phases.setdefault(name, {}).update(peak)
    return {
        "schema": SCHEMA,
        "tool": tool,
        "workload": work.to_json(),
        "settings": dict(settings),
        "environment": environment(packages),
        "phases": phases,
    }


def log(message: str) -> None:
    """Progress goes to stderr: stdout is the JSON."""
    print(message, file=sys.stderr, flush=True)
