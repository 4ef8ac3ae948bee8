"""How the inverse of a stage is applied: EK-FAC, its simpler readings, or a solver on the stage's own data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from msif.attribution.gradients import Side
from msif.attribution.methods import IHVPS, SOLVERS
from msif.curvature.arnoldi import Arnoldi
from msif.curvature.cg import CG
from msif.curvature.factors import Factors, ModuleFactors, held
from msif.curvature.filters import DampedInverse
from msif.curvature.ggn import GGN
from msif.curvature.inputs import device_and_dtype
from msif.curvature.kfac import KFAC, Diagonal
from msif.curvature.lissa import LiSSA, LiSSASettings, PreconditionedLiSSA
from msif.curvature.preconditioners import EKFAC, Identity, Preconditioner
from msif.curvature.store import FactorStore
from msif.errors import MsifError

# products, or steps of the stochastic ones, where no number is asked for
ITERATIONS = {"cg": 500, "ekfac-cg": 50, "lissa": 1000, "ekfac-lissa": 100, "arnoldi": 200}


@dataclass(frozen=True)
class IHVP:
    """The choice of an inverse, with the options that its kind reads.

    Every kind approximates the same (H + (λ + α) I)⁻¹, with H per supervised token and the same λ.

    Attributes:
        kind: "ekfac"; "kfac", "diagonal" (from the same factors); "identity"; or, with passes over the stage's data,
            "cg", "ekfac-cg" (preconditioned by EK-FAC, and started from it), "lissa", "ekfac-lissa", "arnoldi".
        iterations: at most so many products (steps of the stochastic ones).
        tolerance: relative residual at which CG ends.
        scale: LiSSA's scale; None measures one.
        top: Arnoldi's eigenpairs.
        seed: of mini-batches and start vectors.

    Raises:
        MsifError: an unknown kind.
    """

    kind: str = "ekfac"
    iterations: int | None = None
    tolerance: float = 1e-4
    scale: float | None = None
    top: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in IHVPS:
            raise MsifError(f"there is no inverse '{self.kind}': choose one of {', '.join(IHVPS)}.")

    @property
    def steps(self) -> int:
        """Most products, or steps of the stochastic ones; 0 of what takes none."""
        return self.iterations or ITERATIONS[self.kind] if self.kind in SOLVERS else 0

    def build(
        self, side: Side, factors: Factors, filter: DampedInverse, batches: Iterable[Any] | None = None
    ) -> Preconditioner:
        """The inverse of one stage, over the modules of ``side``.

        Raises:
            MsifError: a solver without data, or K-FAC on factors without counts.
        """
        if self.kind == "identity":
            return Identity()
        if self.kind == "ekfac":
            return EKFAC(factors, filter)
        if self.kind == "diagonal":
            return Diagonal(factors, filter)
        if self.kind == "kfac":
            counts = factors.manifest["counts"] if isinstance(factors, FactorStore) else {}
            return KFAC(factors, counts, filter)
        assert self.kind in SOLVERS
        if batches is None:
            raise MsifError(f"'{self.kind}' solves on the stage's own data: give batches of it.")
        # applied at every step, so held in memory
        names = [module.name for module in side.tracked]
        loaded = factors.load_all(names) if isinstance(factors, FactorStore) else {n: factors[n] for n in names}
        in_memory = held(loaded, *device_and_dtype(side.model))
        scales = {name: _scales(filter, module, name) for name, module in in_memory.items()}
        solver = self._solver(side, in_memory, filter, scales, batches)
        solver.scales.update(scales)
        return solver

    def _solver(
        self,
        side: Side,
        in_memory: dict[str, ModuleFactors],
        filter: DampedInverse,
        scales: dict[str, dict[str, Tensor]],
        batches: Iterable[Any],
    ) -> Preconditioner:
        damping = {name: own["damping"] + own["alpha"] for name, own in scales.items()}
        operator = GGN(side.model, side.tracked, side.objective, batches)
        iterations = self.steps
        if self.kind == "arnoldi":
            top = min(self.top, iterations)
            return Arnoldi(operator, side.tracked, damping, top=top, iterations=iterations, seed=self.seed)
        approximate = EKFAC(in_memory, filter)
        if self.kind in ("cg", "ekfac-cg"):
            chosen = approximate if self.kind == "ekfac-cg" else None
            return CG(operator, side.tracked, damping, chosen, iterations=iterations, tolerance=self.tolerance)
        settings = LiSSASettings(depth=iterations, seed=self.seed)
        if self.kind == "lissa":
            return LiSSA(operator, side.tracked, damping, settings, scale=self.scale)
        return PreconditionedLiSSA(operator, side.tracked, damping, approximate, settings)


def _scales(filter: DampedInverse, module: ModuleFactors, name: str) -> dict[str, Tensor]:
    assert module.Lambda is not None
    return filter.scales(module.Lambda, name)
