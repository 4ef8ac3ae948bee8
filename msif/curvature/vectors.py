"""Vectors over the tracked parameters: name -> (Q, d_out, d), Q of them at once, d = d_in + bias.

Solvers need no more of a parameter than ``Part`` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from msif.errors import MsifError

Vectors = dict[str, Tensor]


class Part(Protocol):
    """What a vector is made of."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""

    @property
    def blocks(self) -> Sequence[object]:
        """Of equal numbers of rows, each with a damping of its own."""


def dot(a: Vectors, b: Vectors) -> Tensor:
    """⟨a_q, b_q⟩ over all modules, (Q,), float64."""
    return torch.stack([(a[name].double() * b[name].double()).sum((1, 2)) for name in a]).sum(0)


def add(a: Vectors, b: Vectors, factor: Tensor) -> Vectors:
    """a_q + factor_q · b_q."""
    return {name: A + factor.to(A.dtype).view(-1, 1, 1) * b[name] for name, A in a.items()}


def scaled(vectors: Vectors, factor: Tensor) -> Vectors:
    """factor_q · v_q."""
    return {name: factor.to(V.dtype).view(-1, 1, 1) * V for name, V in vectors.items()}


def zeros(vectors: Vectors) -> Vectors:
    """Zeros like the vectors."""
    return {name: torch.zeros_like(V) for name, V in vectors.items()}


def mean(all_vectors: list[Vectors]) -> Vectors:
    """The mean of several sets of vectors."""
    return {name: torch.stack([vectors[name] for vectors in all_vectors]).mean(0) for name in all_vectors[0]}


def normal(source: np.random.Generator, like: Vectors) -> Vectors:
    """One standard normal vector, Q = 1, in the shapes, dtypes and devices of ``like``."""
    draw = {name: torch.from_numpy(source.standard_normal((1, *V.shape[1:]))) for name, V in like.items()}
    return {name: V.to(like[name].device, like[name].dtype) for name, V in draw.items()}


def check_right_hand_sides(b: Vectors) -> Tensor:
    """‖b_q‖, (Q,), float64.

    Raises:
        MsifError: one is zero, or holds NaN or infinity.
    """
    norms = dot(b, b).sqrt()
    if not bool(torch.isfinite(norms).all()) or bool((norms == 0).any()):
        raise MsifError("a right-hand side is zero, or holds NaN or infinity: look at that query's gradient.")
    return norms
