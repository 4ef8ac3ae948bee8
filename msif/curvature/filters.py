"""Spectral filters: what is done to an eigenvalue σ of the curvature (docs/method.md).

Each takes Λ of one module, (nb, r, d), and returns f(Λ) in the same shape. σ = Λ is in units of loss per parameter²
(mean loss of a token); damping and α are in the same units, τ in their inverse.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from msif.errors import MsifError

Scale = float | Mapping[str, Tensor]
"""One number for all blocks, or for each module name a tensor (nb,), one number a block."""


def per_block(value: Scale, name: str, Lambda: Tensor) -> Tensor:
    """A scale as a tensor that broadcasts over Λ."""
    if isinstance(value, Mapping):
        return value[name].to(Lambda.device, Lambda.dtype).view(-1, 1, 1)
    return torch.as_tensor(value, device=Lambda.device, dtype=Lambda.dtype)


def times_blocks(V: Tensor, value: Scale, name: str, blocks: int) -> Tensor:
    """Vectors (Q, d_out, d) of a module of so many blocks of rows, each block times its own number."""
    split = V.unflatten(1, (blocks, -1))
    return (split * per_block(value, name, split)).flatten(1, 2)


class Filter(ABC):
    """f: (Λ of a module (nb, r, d), the module's name) -> f(Λ), same shape."""

    @abstractmethod
    def __call__(self, Lambda: Tensor, name: str) -> Tensor: ...

    @abstractmethod
    def scales(self, Lambda: Tensor, name: str) -> dict[str, Tensor]:
        """What f sets beside σ on this module, "damping" and "alpha" or "tau": for each a number a block, (nb,)."""


def of_blocks(value: Tensor, Lambda: Tensor) -> Tensor:
    """What broadcasts over Λ, one number or (nb, 1, 1), as (nb,)."""
    return value.expand(len(Lambda), 1, 1).flatten()


@dataclass(frozen=True)
class DampedInverse(Filter):
    """1/(σ + λ + α), with λ = ``damping``, or ``damping_scale`` · mean(Λ) of the block where no damping is given.

    ``alpha`` is the strength of the pull towards the pre-trained parameters, (H + (α + λ) I)⁻¹. With a relative
    damping and no α, a block whose Λ is zero throughout (a pruned head) is filtered to zero.

    Raises:
        MsifError: a negative value, or λ + α = 0 on a block with a vanishing eigenvalue.
    """

    damping: Scale | None = None
    damping_scale: float = 0.1
    alpha: Scale = 0.0

    def __post_init__(self) -> None:
        _check_not_negative("damping", self.damping if self.damping is not None else 0.0)
        _check_not_negative("damping scale", self.damping_scale)
        _check_not_negative("alpha", self.alpha)

    def shift(self, Lambda: Tensor, name: str) -> Tensor:
        """λ + α of each block, one number or (nb, 1, 1): what a solver other than EK-FAC adds to H."""
        return self._damping(Lambda, name) + per_block(self.alpha, name, Lambda)

    def _damping(self, Lambda: Tensor, name: str) -> Tensor:
        if self.damping is None:
            return self.damping_scale * Lambda.mean(dim=(1, 2), keepdim=True)
        return per_block(self.damping, name, Lambda)

    def scales(self, Lambda: Tensor, name: str) -> dict[str, Tensor]:
        alpha = per_block(self.alpha, name, Lambda)
        return {"damping": of_blocks(self._damping(Lambda, name), Lambda), "alpha": of_blocks(alpha, Lambda)}

    def __call__(self, Lambda: Tensor, name: str) -> Tensor:
        shift = self.shift(Lambda, name)
        damped = Lambda + shift
        if self.damping is None:
            # a dead block has no gradient to act on, and no scale to be damped by: 1/inf keeps it at zero
            dead = (Lambda.amax(dim=(1, 2), keepdim=True) <= 0) & (per_block(self.alpha, name, Lambda) == 0)
            damped = torch.where(dead, torch.inf, damped)
        # undamped, an eigenvalue below the rounding error of its block's largest is noise, and its inverse would be
        # the answer
        floor = Lambda.amax(dim=(1, 2), keepdim=True) * torch.finfo(Lambda.dtype).eps * 1e-3
        if bool((damped <= torch.where(shift > 0, 0.0, floor)).any()):
            raise MsifError(
                f"Λ of module '{name}' is singular and the damping does not lift it: "
                "use --damping with a positive value."
            )
        return damped.reciprocal_()


@dataclass(frozen=True)
class ProximalHop(Filter):
    """α/(σ + α): what fine-tuning with a pull α towards the pre-trained parameters keeps of a displacement."""

    alpha: Scale

    def __post_init__(self) -> None:
        _check_positive("alpha", self.alpha)

    def scales(self, Lambda: Tensor, name: str) -> dict[str, Tensor]:
        return {"alpha": of_blocks(per_block(self.alpha, name, Lambda), Lambda)}

    def __call__(self, Lambda: Tensor, name: str) -> Tensor:
        alpha = per_block(self.alpha, name, Lambda)
        return alpha / (Lambda + alpha)


@dataclass(frozen=True)
class Decay(Filter):
    """exp(−τσ): what τ of gradient descent keeps of a displacement (SOURCE, Bae et al. 2024, arXiv 2405.12186)."""

    tau: Scale

    def __post_init__(self) -> None:
        _check_positive("tau", self.tau)

    def scales(self, Lambda: Tensor, name: str) -> dict[str, Tensor]:
        return {"tau": of_blocks(per_block(self.tau, name, Lambda), Lambda)}

    def __call__(self, Lambda: Tensor, name: str) -> Tensor:
        return torch.exp(-per_block(self.tau, name, Lambda) * Lambda)


@dataclass(frozen=True)
class Accumulation(Filter):
    """(1 − exp(−τσ))/σ, → τ as σ → 0: what τ of descent accumulates from a gradient (SOURCE, Bae et al. 2024)."""

    tau: Scale

    def __post_init__(self) -> None:
        _check_positive("tau", self.tau)

    def scales(self, Lambda: Tensor, name: str) -> dict[str, Tensor]:
        return {"tau": of_blocks(per_block(self.tau, name, Lambda), Lambda)}

    def __call__(self, Lambda: Tensor, name: str) -> Tensor:
        tau = per_block(self.tau, name, Lambda).expand(Lambda.shape)
        small = tau * Lambda < torch.finfo(Lambda.dtype).eps
        safe = torch.where(small, torch.ones_like(Lambda), Lambda)
        return torch.where(small, tau, -torch.expm1(-tau * safe) / safe)


@dataclass(frozen=True)
class DampedPower(Filter):
    """(σ + λ)^exponent with λ as in DampedInverse; −1/2 makes a symmetric index of both sides."""

    exponent: float
    damping: Scale | None = None
    damping_scale: float = 0.1

    def __post_init__(self) -> None:
        DampedInverse(self.damping, self.damping_scale)  # checks both

    def scales(self, Lambda: Tensor, name: str) -> dict[str, Tensor]:
        return DampedInverse(self.damping, self.damping_scale).scales(Lambda, name)

    def __call__(self, Lambda: Tensor, name: str) -> Tensor:
        return DampedInverse(self.damping, self.damping_scale)(Lambda, name) ** (-self.exponent)


def _values(value: Scale) -> list[float]:
    return [float(v) for t in value.values() for v in t.flatten()] if isinstance(value, Mapping) else [value]


def _check_not_negative(what: str, value: Scale) -> None:
    if any(not math.isfinite(v) or v < 0 for v in _values(value)):
        raise MsifError(f"{what} is {min(_values(value))}: it must be a finite number, 0 or larger.")


def _check_positive(what: str, value: Scale) -> None:
    if any(not math.isfinite(v) or v <= 0 for v in _values(value)):
        raise MsifError(f"{what} is {min(_values(value))}: it must be a finite number larger than 0.")
