"""What passes cost beside the model's own forward and backward passes, by count.

Letters: B sequences of T positions, d = d_in + bias, r rows of a block, P = d_out·d.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import add

from msif.curvature.eigenvalues import CHUNK_ELEMENTS
from msif.models.blocks import TrackedModule

# temporaries of so many float32 numbers and more come anew from a CPU's system each time, page by page
PAGED = 2**23


@dataclass(frozen=True)
class Work:
    """Counts of a pass.

    Attributes:
        multiply_adds: of matrix products in the dtype that sums are taken in.
        elements: of temporaries, once for each time that they are written or read.
        double: multiply-adds in float64.
        paged: of the elements, those that are written to ``PAGED`` temporaries.
    """

    multiply_adds: float = 0.0
    elements: float = 0.0
    double: float = 0.0
    paged: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*map(add, vars(self).values(), vars(other).values()))

    def __mul__(self, times: float) -> Work:
        return Work(*(times * value for value in vars(self).values()))


def temporaries(count: float, size: float, at_once: float) -> Work:
    """Writing and reading ``count`` temporaries of ``size`` numbers, of which ``at_once`` are held together."""
    return Work(elements=2 * count * size, paged=count * size if at_once >= PAGED else 0.0)


def products(module: TrackedModule) -> int:
    """Uses that take a product of both sides at each position; a lookup adds to the rows that it reads instead."""
    return sum(use.kind != "lookup" for use in module.uses)


def multiplied(tracked: Sequence[TrackedModule]) -> int:
    """Multiply-adds of V x, or of g xᵀ, at one position."""
    return sum(products(module) * module.d_out * module.shape[1] for module in tracked)


def covariance_work(
    tracked: Sequence[TrackedModule], groups: Mapping[str, str], B: int, T: int, label_samples: int
) -> Work:
    """Of a batch in the covariance pass: d² a token for each input, d_out·r for each module and draw.

    A right side that holds g, or is weighted by it, is summed for each draw. Diagonals take no products, but for a
    weighted one of d_out a token.
    """
    total, draws = Work(), B * T * label_samples
    for module in tracked:
        gram = module.d_in**2 if module.column_basis == "eigenvectors" else 0
        grams = module.d_out * (module.block_rows if module.row_basis == "eigenvectors" else int(module.mixed))
        for use in module.uses:
            if use.kind != "linear" or module.mixed:
                total += Work(gram, (4 if module.mixed else 2) * module.d_in) * draws
            elif groups[module.name] == module.name:
                total += Work(gram, module.d_in) * (B * T)
            total += (Work(0, 2) if use.kind == "lookup" else Work(grams, 2 * module.d_out)) * draws
    return total


def lambda_work(
    tracked: Sequence[TrackedModule], groups: Mapping[str, str], B: int, T: int, label_samples: int
) -> Work:
    """Of a batch in the Λ pass: either side is rotated before or after the positions are contracted."""
    total, draws = Work(), B * label_samples
    readers = dict.fromkeys(groups.values(), 0)
    for module in tracked:
        readers[groups[module.name]] += module.d_out
    for module in tracked:
        (d_out, d), leader, uses = module.shape, groups[module.name], products(module)
        if module.column_basis == "eigenvectors":
            total += _right_work(module, leader == module.name, readers[leader] < T, B, T, draws)
        gathered = Work(0, 4 * T * d) * (len(module.uses) - uses)
        if not uses and len(module.uses) == 1:  # of a table only the rows that are read
            total += gathered * draws
            continue
        rotated, at_once = 0, min(d_out * d, CHUNK_ELEMENTS)
        if module.row_basis == "eigenvectors":
            rotated, at_once = (uses * T if d >= T else d) * d_out * module.block_rows, d_out * d
        each = Work(rotated + uses * T * d_out * d, 3 * uses * T * d_out + d_out * d) + gathered
        total += (each + temporaries(1, d_out * d, at_once)) * draws
    return total


def _right_work(module: TrackedModule, leads: bool, gradient: bool, B: int, T: int, draws: int) -> Work:
    """Of rotating the gradient, or the right sides: inputs once for all draws and all that read them."""
    d_out, d = module.shape
    if gradient and not module.is_table:
        return Work(d_out * d * d, d_out * d) * draws
    inputs = sum(use.kind == "linear" for use in module.uses)
    return Work(T * d * d, T * d) * (B * inputs * leads + draws * (len(module.uses) - inputs))


def rotation_work(tracked: Sequence[TrackedModule]) -> Work:
    """Of one vector that is taken into the eigenbasis, filtered, and back."""
    total = Work()
    for module in tracked:
        d_out, d = module.shape
        rows = module.block_rows if module.row_basis == "eigenvectors" else 0
        columns = d if module.column_basis == "eigenvectors" else 0
        total += Work(2 * d_out * d * (rows + columns))
        total += temporaries(5, d_out * d, d_out * d)
    return total
