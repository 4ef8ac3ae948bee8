"""How much A, G and Λ still move as data grows, from small random sketches of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

PROBES = 32
WARN_ABOVE = 0.10


class Convergence:
    """Estimates the relative change per doubling of the data, ‖M_N − M_{N/2}‖ / ‖M_N‖ in Frobenius norm.

    A matrix (…, d) is seen through M R with R (d, PROBES) Gaussian: ‖M R‖² is PROBES·‖M‖² in expectation, so a
    snapshot costs 32 columns and not a copy. Snapshots are taken as the sequences double.
    """

    def __init__(self) -> None:
        self.snapshots: list[tuple[int, dict[str, Tensor]]] = []

    def observe(self, count: int, estimates: Callable[[], Iterable[tuple[str, Tensor]]]) -> None:
        """Takes a snapshot when ``count`` sequences are twice those of the last one, or more."""
        if not self.snapshots or count >= 2 * self.snapshots[-1][0]:
            self.snapshots.append((count, _sketches(estimates())))

    def changes(self, count: int, estimates: Iterable[tuple[str, Tensor]]) -> dict[str, float]:
        """Name -> relative change per doubling at ``count`` sequences; empty with fewer than two snapshots.

        Compared with the snapshot nearest to half of the data; a mean over N' < N sequences differs from that over N
        by a variance ∝ 1/N' − 1/N, by which the change is scaled to N' = N/2.
        """
        earlier = [snapshot for snapshot in self.snapshots if snapshot[0] <= 0.75 * count]
        if not earlier:
            return {}
        then, old = min(earlier, key=lambda snapshot: abs(snapshot[0] - count / 2))
        scale = (count / then - 1) ** -0.5
        return {
            name: float((new - old[name]).norm() / new.norm().clamp(min=torch.finfo(new.dtype).tiny)) * scale
            for name, new in _sketches(estimates).items()
        }

    def state(self) -> tuple[dict[str, Tensor], str]:
        """(tensors, JSON) for a checkpoint."""
        tensors = {
            f"snapshot.{i}.{name}": t for i, (_, sketch) in enumerate(self.snapshots) for name, t in sketch.items()
        }
        return tensors, json.dumps([count for count, _ in self.snapshots])

    def load_state(self, tensors: Mapping[str, Tensor], counts: str) -> None:
        self.snapshots = [
            (count, _with_prefix(tensors, f"snapshot.{i}.")) for i, count in enumerate(json.loads(counts))
        ]


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _sketches(estimates: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {name: (matrix @ _probes(matrix)).cpu() for name, matrix in estimates}


def _probes(matrix: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(matrix.shape[-1], PROBES, generator=generator).to(matrix.device, matrix.dtype)
