"""What scorers with inverses of stages tell of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor


class Scaled(Protocol):
    """
    Attributes:
        scales: module -> what its eigenvalues were damped by, by name, each (nb,); see ``Filter.scales``.
    """

    @property
    def scales(self) -> dict[str, dict[str, Tensor]]: ...


@runtime_checkable
class Staged(Protocol):
    """A scorer with inverses of stages."""

    @property
    def applied(self) -> Sequence[Scaled]:
        """What is in the place of each stage's inverse, in the order of training; there may be fewer than stages."""
        ...
