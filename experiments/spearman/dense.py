"""H as a matrix, for a model so small that it fits: the exact answer that the other truths are checked against."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from experiments.spearman.bench import Bench
from msif.curvature.filters import per_block
from msif.curvature.ggn import GGN
from msif.curvature.vectors import Vectors
from msif.models.blocks import TrackedModule

AT_ONCE = 64  # columns of a product


def column_slice(size: int, part: int, parts: int) -> range:
    """The columns of one part."""
    return range(size * part // parts, size * (part + 1) // parts)


def dense_part(bench: Bench, part: int) -> None:
    """Columns of H by products with unit vectors, float64, into the cache."""
    side = bench.side_of(bench.world.model, torch.float64)
    ggn = GGN(side.model, side.tracked, side.objective, bench.world.solving)
    shapes = {module.name: torch.Size(module.shape) for module in side.tracked}
    size = sum(shape.numel() for shape in shapes.values())
    columns = column_slice(size, part, bench.c.dense_parts)
    rows = []
    for start in tqdm(range(columns.start, columns.stop, AT_ONCE), desc=f"H, part {part + 1}", disable=None):
        chosen = torch.arange(start, min(start + AT_ONCE, columns.stop))
        unit = torch.zeros(len(chosen), size, dtype=torch.float64, device=bench.device)
        unit[torch.arange(len(chosen)), chosen] = 1.0
        rows.append(flat(ggn.matvec(_unflat(unit, shapes))).cpu())
    bench.dense.save(part_name(part), {"columns": torch.cat(rows).numpy()})


def part_name(part: int) -> str:
    return f"part-{part + 1}"


def matrix(bench: Bench) -> np.ndarray:
    """H as it was put together, (P, P)."""
    return np.concatenate([bench.dense.load(part_name(part))["columns"] for part in range(bench.c.dense_parts)])


def solve(bench: Bench, damping: str, b: Vectors) -> Vectors:
    """(H + D)⁻¹ b by Cholesky, float64."""
    return solve_within(bench, damping, b, [torch.arange(flat(b).shape[1])])


def solve_within(bench: Bench, damping: str, b: Vectors, groups: Sequence[Tensor]) -> Vectors:
    """(H' + D)⁻¹ b, float64, H' being H without what lies between the groups of parameters."""
    H = torch.from_numpy(matrix(bench))
    H = (H + H.T) / 2
    H.diagonal().add_(_shift(bench, damping))
    right = flat(b).double().cpu()
    x = torch.zeros_like(right)
    for group in groups:
        factor = torch.linalg.cholesky(H[group][:, group])
        x[:, group] = torch.cholesky_solve(right[:, group].T, factor).T
    return _unflat(x.to(bench.device), {name: V.shape[1:] for name, V in b.items()})


def parameters_by(tracked: Sequence[TrackedModule], key: Callable[[TrackedModule, int], Hashable]) -> list[Tensor]:
    """Places in the flat vector, grouped by a key of (module, number of the block)."""
    groups: dict[Hashable, list[Tensor]] = {}
    start = 0
    for module in tracked:
        for block in range(len(module.blocks)):
            end = start + module.block_rows * module.shape[1]
            groups.setdefault(key(module, block), []).append(torch.arange(start, end))
            start = end
    return [torch.cat(group) for group in groups.values()]


def _shift(bench: Bench, damping: str) -> Tensor:
    """D's diagonal, (P,)."""
    shift, rows = bench.shift(damping), []
    for module in bench.side.tracked:
        ones = torch.ones(len(module.blocks), module.block_rows, module.shape[1], dtype=torch.float64)
        rows.append((ones * per_block(shift, module.name, ones)).flatten())
    return torch.cat(rows)


def flat(vectors: Vectors) -> Tensor:
    """(Q, P)."""
    return torch.cat([V.flatten(1) for V in vectors.values()], dim=1)


def _unflat(rows: Tensor, shapes: dict[str, torch.Size]) -> Vectors:
    parts = rows.split([shape.numel() for shape in shapes.values()], dim=1)
    return {name: part.reshape(-1, *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
