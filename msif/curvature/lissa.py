"""Stochastic solvers: LiSSA, and the same recursion preconditioned by EK-FAC.

Both solve (H + D) x = b for Q right-hand sides by a Neumann series over random mini-batches,

    x ← x + step · P (b − (H_b + D) x)

with H_b the curvature of the mini-batch drawn for this iteration. LiSSA (Agarwal, Bullins and Hazan 2017, arXiv
1602.03943; Koh and Liang 2017, arXiv 1703.04730) has P = I and step = 1/scale: with y = scale · x this is its
y ← b + (I − (H_b + D)/scale) y, started at y = b. With EK-FAC as P, x starts at EK-FAC's own answer P b. Both converge
in the mean where step < 2/ρ, with ρ the largest eigenvalue of P (H + D); at any constant step the mini-batches leave a
noise in x that falls with the step.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from msif.curvature.cg import Damped
from msif.curvature.filters import Scale
from msif.curvature.ggn import GGN
from msif.curvature.minibatches import MiniBatches
from msif.curvature.power import START_STREAM, largest_eigenvalue
from msif.curvature.preconditioners import Identity, Preconditioner
from msif.curvature.vectors import Vectors, add, check_right_hand_sides, dot, mean, scaled, zeros
from msif.draws import generator
from msif.errors import MsifError
from msif.models.blocks import TrackedModule

log = logging.getLogger(__name__)

BATCH_STREAM = 3

# a residual this many times the right-hand side is no solution on its way
HOPELESS = 1e4

# mini-batches whose largest eigenvalue is measured where no scale or step is given
MEASURED = 4


@dataclass(frozen=True)
class LiSSASettings:
    """How long a stochastic solver runs, and over what.

    Attributes:
        depth: iterations of a repeat.
        repeats: independent runs whose results are averaged.
        batches: batches of the data in a mini-batch.
        seed: of the draws; the draw of an iteration depends on (seed, repeat, iteration) and on nothing else.
        power_iterations: products for each estimate of the largest eigenvalue; 0 trusts a given scale or step.

    Raises:
        MsifError: a number that is too small.
    """

    depth: int = 1000
    repeats: int = 1
    batches: int = 1
    seed: int = 0
    power_iterations: int = 10

    def __post_init__(self) -> None:
        if min(self.depth, self.repeats, self.batches) < 1 or min(self.seed, self.power_iterations) < 0:
            raise MsifError("LiSSA needs a depth, repeats and batches of 1 or more, and a seed of 0 or more.")


class _Richardson(ABC, Preconditioner):
    """x ← x + step · P (b − (H_b + D) x), with its checks."""

    kind = "the stochastic solver"
    solves = True

    def __init__(
        self,
        operator: GGN,
        tracked: Sequence[TrackedModule],
        damping: Scale,
        approximate: Preconditioner,
        settings: LiSSASettings | None,
        step: float | None,
        tail: float,
    ) -> None:
        self.settings = settings or LiSSASettings()
        self.operator, self.tracked, self.damping, self.approximate = operator, tracked, damping, approximate
        self.step, self.tail = step, tail
        self.products = 0.0
        self.residuals: Tensor | None = None
        self._minibatches: MiniBatches | None = None

    def apply(self, vectors: Vectors) -> Vectors:
        """The solution for each of Q vectors, (Q, d_out, d) a module.

        Raises:
            MsifError: a vector is zero, or holds NaN or infinity, or the iteration diverges.
        """
        norms = check_right_hand_sides(vectors)
        if self._minibatches is None:
            self._minibatches = MiniBatches(self.operator, self.settings.batches)
            self.step = self._checked_step(self._minibatches, vectors)
        runs = [self._run(self._minibatches, vectors, norms, repeat) for repeat in range(self.settings.repeats)]
        self.residuals = torch.stack([residuals for _, residuals in runs])
        worst = float(self.residuals[:, -1].max())
        log.info("%s: %.1f products so far, last mini-batch residual %.2g at worst", self.kind, self.products, worst)
        return mean([x for x, _ in runs])

    def _run(self, data: MiniBatches, b: Vectors, norms: Tensor, repeat: int) -> tuple[Vectors, Tensor]:
        """(x, residuals (depth, Q)) of one repeat."""
        assert self.step is not None
        step = torch.full_like(norms, self.step)
        depth = self.settings.depth
        first_kept = depth - max(1, round(self.tail * depth))
        x, total = self._start(b), zeros(b)
        history = []
        for number in range(depth):
            drawn = data.draw(generator(self.settings.seed, BATCH_STREAM, repeat, number))
            r = add(b, Damped(drawn, self.tracked, self.damping).matvec(x), -torch.ones_like(norms))
            self.products += len(norms) * drawn.share
            history.append(dot(r, r).sqrt() / norms)
            if not float(history[-1].max()) < HOPELESS:  # NaN is not below it either
                raise MsifError(self._diverged(float(history[-1].max())))
            x = add(x, self.approximate.apply(r), step)
            if number >= first_kept:
                total = add(total, x, torch.ones_like(norms))
        residuals = torch.stack(history)
        if _still_growing(residuals):
            raise MsifError(self._diverged(float(residuals[-1].max())))
        if not bool(torch.isfinite(dot(total, total)).all()):
            raise MsifError(self._diverged(math.inf))
        return scaled(total, torch.full_like(norms, 1 / (depth - first_kept))), residuals

    def _checked_step(self, data: MiniBatches, like: Vectors) -> float:
        """The step that was given, if the mean of the iteration converges with it; else one that was measured."""
        iterations, seed = self.settings.power_iterations, self.settings.seed
        if self.step is None:
            # what a single mini-batch may do is above what their mean does: twice the margin at least
            draws = range(min(MEASURED, len(data.batches)))
            rho = max(self._rho(data, like, number, iterations or 10) for number in draws)
            log.info("%s: largest eigenvalue of a mini-batch %.3g", self.kind, rho)
            return 1 / rho
        if iterations:
            damped = Damped(self.operator, self.tracked, self.damping)
            rho = largest_eigenvalue(damped, like, preconditioner=self.approximate, iterations=iterations, seed=seed)
            self.products += iterations
            if self.step * rho >= 2:
                raise MsifError(self._refused(rho))
        return self.step

    def _rho(self, data: MiniBatches, like: Vectors, number: int, iterations: int) -> float:
        """The largest eigenvalue of P (H_b + D) for one mini-batch."""
        drawn = data.draw(generator(self.settings.seed, START_STREAM, 1, number))
        self.products += iterations * drawn.share
        return largest_eigenvalue(
            Damped(drawn, self.tracked, self.damping),
            like,
            preconditioner=self.approximate,
            iterations=iterations,
            seed=self.settings.seed,
        )

    @abstractmethod
    def _start(self, b: Vectors) -> Vectors: ...

    @abstractmethod
    def _refused(self, rho: float) -> str: ...

    @abstractmethod
    def _diverged(self, residual: float) -> str: ...


class LiSSA(_Richardson):
    """The damped inverse by plain LiSSA, as a preconditioner.

    Cost: ``depth`` · ``repeats`` products with a mini-batch for each vector, and the check of the scale. ``products``
    counts them in products with all of the data, one for each vector, as ``GGN.products`` does: passes over the data
    are that over Q.

    Args:
        scale: above half the largest eigenvalue of H + D, or it is refused; from the largest eigenvalue on, no
            direction overshoots. None measures the largest one of a few mini-batches and takes that.

    After ``apply``, ``scale`` holds what was used, and ``residuals`` ‖b − (H_b + D) x‖ / ‖b‖ before every step,
    (repeats, depth, Q): each on that step's own mini-batch, so that even at the solution its noise remains, which may
    be above 1.

    Raises:
        MsifError: the scale is not positive, or too small (by power iterations before, or by growth on the way).
    """

    kind = "LiSSA"

    def __init__(
        self,
        operator: GGN,
        tracked: Sequence[TrackedModule],
        damping: Scale,
        settings: LiSSASettings | None = None,
        *,
        scale: float | None = None,
    ) -> None:
        _check_positive("scale", scale)
        super().__init__(operator, tracked, damping, Identity(), settings, None if scale is None else 1 / scale, 0.0)

    @property
    def scale(self) -> float | None:
        return None if self.step is None else 1 / self.step

    def _start(self, b: Vectors) -> Vectors:
        assert self.step is not None
        return {name: self.step * V for name, V in b.items()}

    def _refused(self, rho: float) -> str:
        return (
            f"LiSSA diverges with a scale of {self.scale:.3g}: the largest eigenvalue of the damped curvature is at "
            f"least {rho:.3g}, and the scale must be above half of it. Use a scale of {1.1 * rho:.2g} or more, or none."
        )

    def _diverged(self, residual: float) -> str:
        return (
            f"LiSSA diverged (a residual of {residual:.2g} times the right-hand side) with a scale of "
            f"{self.scale:.3g}: use a larger scale, or more batches in a mini-batch."
        )


class PreconditionedLiSSA(_Richardson):
    """The damped inverse by stochastic Richardson iterations on P (H + D), as a preconditioner.

    With EK-FAC as P the eigenvalues of P (H + D) lie around 1, so that depth need not grow with the condition of H;
    for when a pass over all data is too dear for CG. Cost and ``products`` as of ``LiSSA``.

    Args:
        approximate: P, EK-FAC with the same damping; its factors in memory, for it is applied at every step.
        step: below 2/ρ, ρ the largest eigenvalue of P (H + D), or it is refused; None measures ρ on a few mini-batches
            and takes 1/ρ.
        tail: the share of the last iterates that is averaged (Polyak and Juditsky 1992), which takes out most of the
            mini-batches' noise; 0 gives the last iterate.

    Raises:
        MsifError: the step is not positive, or too large (by power iterations before, or by growth on the way).
    """

    kind = "EK-FAC-preconditioned LiSSA"

    def __init__(
        self,
        operator: GGN,
        tracked: Sequence[TrackedModule],
        damping: Scale,
        approximate: Preconditioner,
        settings: LiSSASettings | None = None,
        *,
        step: float | None = None,
        tail: float = 0.5,
    ) -> None:
        _check_positive("step", step)
        if not 0 <= tail <= 1:
            raise MsifError(f"tail is {tail}: it must be a share of the iterates, from 0 to 1.")
        super().__init__(operator, tracked, damping, approximate, settings, step, tail)

    def _start(self, b: Vectors) -> Vectors:
        return self.approximate.apply(b)

    def _refused(self, rho: float) -> str:
        return (
            f"preconditioned LiSSA diverges with a step of {self.step:.3g}: the largest eigenvalue of the "
            f"preconditioned curvature is at least {rho:.3g}, and the step must be below 2 over it. Use a step of "
            f"{0.9 / rho:.2g} or less, or none."
        )

    def _diverged(self, residual: float) -> str:
        return (
            f"preconditioned LiSSA diverged (a residual of {residual:.2g} times the right-hand side) with a step of "
            f"{self.step:.3g}: use a smaller step, more batches in a mini-batch, or a larger --damping."
        )


def _still_growing(residuals: Tensor) -> bool:
    """Whether a run's residuals (depth, Q) grow by a factor, rather than waver about a level, at its end.

    Where the iteration converges the residual falls, and its noise grows with x: at most as fast as the number of
    steps, by 1.4 from the third quarter to the fourth. A factor of 2, above the start, is exponential growth.
    """
    quarter = len(residuals) // 4
    if quarter < 5:
        return False
    later = residuals[-quarter:].median(0).values
    earlier = residuals[-2 * quarter : -quarter].median(0).values
    return bool(((later > 2 * earlier) & (later > 1)).any())


def _check_positive(what: str, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise MsifError(f"{what} is {value}: it must be a finite number larger than 0.")
