"""How much A, G and Λ still move as data grows, from small random sketches of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from msif import distributed
from msif.curvature.sums import Estimate, mean

PROBES = 32
WARN_ABOVE = 0.10


class Convergence:
    """Estimates the relative change per doubling of the data, ‖M_N − M_{N/2}‖ / ‖M_N‖ in Frobenius norm.

    A matrix (…, d) is seen through M R with R (d, PROBES) Gaussian: ‖M R‖² is PROBES·‖M‖² in expectation, so a
    snapshot costs 32 columns and not a copy. Snapshots are taken before batches number 1, 2, 4, 8, … of all processes'
    batches; of sums, which processes add up.
    """

    def __init__(self) -> None:
        self.snapshots: list[tuple[int, dict[str, Tensor]]] = []

    def observe(self, number: int, count: int, estimates: Callable[[], Iterable[Estimate]]) -> None:
        """To be called before a batch: ``count`` of its own sequences are in the sums."""
        if number >= 2 ** len(self.snapshots):
            taken = count, _sketches(estimates())
            while number >= 2 ** len(self.snapshots):
                self.snapshots.append(taken)

    def changes(self, count: int, estimates: Iterable[Estimate]) -> dict[str, float]:
        """Name -> relative change per doubling at the end of the data, for the first process; empty of one batch.

        Compared with the snapshot nearest to half of the data; a mean over N' < N sequences differs from that over N
        by a variance ∝ 1/N' − 1/N, by which the change is scaled to N' = N/2.
        """
        last = count, _sketches(estimates)
        most = max(distributed.gathered(len(self.snapshots)))
        # who has no more batches has no more to add
        own = [*self.snapshots, *[last] * (most - len(self.snapshots)), last]
        *counts, N = distributed.total([taken for taken, _ in own])
        earlier = [place for place, taken in enumerate(counts) if 0 < taken <= 0.75 * N]
        if not earlier:
            return {}
        place = min(earlier, key=lambda place: abs(counts[place] - N / 2))
        old, new = (_means(sketches) for _, sketches in (own[place], last))
        scale = (N / counts[place] - 1) ** -0.5
        return {
            name: float((now - old[name]).norm() / now.norm().clamp(min=torch.finfo(now.dtype).tiny)) * scale
            for name, now in new.items()
        }

    def state(self) -> tuple[dict[str, Tensor], str]:
        """(tensors, JSON) for a checkpoint."""
        tensors = {
            f"snapshot.{i}.{name}": tensor.clone()  # some are the same
            for i, (_, sketch) in enumerate(self.snapshots)
            for name, tensor in sketch.items()
        }
        return tensors, json.dumps([count for count, _ in self.snapshots])

    def load_state(self, tensors: Mapping[str, Tensor], counts: str) -> None:
        self.snapshots = [
            (count, _with_prefix(tensors, f"snapshot.{i}.")) for i, count in enumerate(json.loads(counts))
        ]


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _sketches(estimates: Iterable[Estimate]) -> dict[str, Tensor]:
    """Of each sum S R, flat, with its divisor at the end."""
    found = {}
    for name, total, divisor in estimates:
        sketch = (total @ _probes(total)).flatten()
        found[name] = torch.cat([sketch, sketch.new_tensor([divisor])]).cpu()
    return found


def _means(sketches: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Over the data of all processes, for the first of them."""
    found = {}
    for name, own in sorted(sketches.items()):  # in one order, also of a process that took up a checkpoint
        whole = own.clone()
        distributed.add_up(whole, 0)
        found[name] = mean(whole[:-1], float(whole[-1]))
    return found


def _probes(matrix: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(matrix.shape[-1], PROBES, generator=generator).to(matrix.device, matrix.dtype)
