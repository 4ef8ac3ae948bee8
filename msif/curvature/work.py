"""What passes cost beside the model's own forward and backward passes, by count.

Letters: B sequences of T positions, d = d_in + bias, r rows of a block, P = d_out·d.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import add

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


def covariance_work(
    tracked: Sequence[TrackedModule], groups: Mapping[str, str], B: int, T: int, label_samples: int
) -> Work:
    """Of a batch in the covariance pass: d² a token for each input, d_out·r for each module and draw."""
    total = Work()
    for module in tracked:
        if groups[module.name] == module.name:
            total += Work(module.d_in**2, module.d_in) * (B * T)
        total += Work(module.d_out * module.block_rows, 2 * module.d_out) * (B * T * label_samples)
    return total


def lambda_work(
    tracked: Sequence[TrackedModule], groups: Mapping[str, str], B: int, T: int, label_samples: int
) -> Work:
    """Of a batch in the Λ pass: either side is rotated before or after the positions are contracted."""
    total = Work()
    readers = dict.fromkeys(groups.values(), 0)
    for module in tracked:
        readers[groups[module.name]] += module.d_out
    for module in tracked:
        (d_out, d), r, leader = module.shape, module.block_rows, groups[module.name]
        if readers[leader] < T:  # the gradient is rotated
            total += Work(d_out * d * d, d_out * d) * (B * label_samples)
        elif leader == module.name:  # the input, once for all that read it
            total += Work(T * d * d, T * d) * B
        each = Work(min(T, d) * d_out * r + T * d_out * d, 3 * T * d_out + d_out * d)
        total += (each + temporaries(1, d_out * d, d_out * d)) * (B * label_samples)
    return total


def rotation_work(tracked: Sequence[TrackedModule]) -> Work:
    """Of one vector that is taken into the eigenbasis, filtered, and back."""
    total = Work()
    for module in tracked:
        d_out, d = module.shape
        total += Work(2 * (d_out * module.block_rows * d + d_out * d * d))
        total += temporaries(5, d_out * d, d_out * d)
    return total
