"""What all methods share: the model, H's data, the queries' gradients, and how a vector becomes scores and costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.common.cache import SETTINGS, Cache, built, hashed, read
from experiments.common.memory import clock, peak_memory
from experiments.common.training import load
from experiments.spearman.configuration import NATURAL, RELATIVE, Configuration
from experiments.spearman.world import World, batches
from msif.atomic import write_json
from msif.attribution.gradients import Side, query_gradients
from msif.attribution.scorers import InfluenceScorer
from msif.curvature.arnoldi import Eigenpairs, top_eigenpairs
from msif.curvature.cg import Damped, relative_residual
from msif.curvature.factors import Factors
from msif.curvature.filters import DampedInverse, Scale
from msif.curvature.fit import FitSettings, fit
from msif.curvature.ggn import GGN
from msif.curvature.preconditioners import EKFAC
from msif.curvature.store import FactorStore
from msif.curvature.vectors import Vectors
from msif.data.documents import Batch
from msif.models.objectives import CausalLM
from msif.models.select import track_modules
from msif.models.training import natural_tau


@dataclass
class Cost:
    """What a piece of work took.

    Attributes:
        seconds: CPU time of the process on a CPU, which other work on the machine hardly changes; wall time elsewhere.
        memory: peak above what was held before, in bytes; None where the system does not tell.
    """

    seconds: float = 0.0
    memory: int | None = None


@dataclass
class Bench:
    """One model and one H, for every method."""

    world: World
    c: Configuration
    output: Path
    seed: int
    device: str
    _shifts: dict[str, Scale] = field(default_factory=dict)

    @property
    def made_of(self) -> Any:
        """The settings of the model: what is made from another one is made again."""
        return read(self.world.model / SETTINGS)

    @cached_property
    def dense(self) -> Cache:
        """Of H as a matrix."""
        settings = {"model": self.made_of, "solving": self.c.solving, "parts": self.c.dense_parts}
        # named by them, too: a process of a broken run may still write its part, which is not one of another H
        return Cache(self.output / "dense" / hashed(settings), settings)

    @cached_property
    def side(self) -> Side:
        return self.side_of(self.world.model)

    def side_of(self, folder: Path, dtype: torch.dtype = torch.float32, split_heads: bool = True) -> Side:
        model, _ = load(folder)
        model = model.to(self.device, dtype).eval()
        return Side(model, track_modules(model, "layers", split_heads), CausalLM())

    @cached_property
    def ggn(self) -> GGN:
        return GGN(self.side.model, self.side.tracked, self.side.objective, self.world.solving)

    @cached_property
    def supervised(self) -> int:
        """N of the solving set."""
        return sum(int(self.side.objective.supervised_counts(batch).sum()) for batch in self.world.solving)

    @cached_property
    def gradients(self) -> Vectors:
        """∇m of the queries."""
        return query_gradients(self.side, self.world.queries)

    @cached_property
    def candidate_gradients(self) -> Vectors:
        return query_gradients(self.side, self.world.candidates)

    def scores(self, x: Vectors) -> np.ndarray:
        """⟨x_q, ∇L(z)⟩, (Q, N), float64."""
        G = self.candidate_gradients
        parts = [x[name].double().flatten(1) @ G[name].double().flatten(1).T for name in x]
        return torch.stack(parts).sum(0).cpu().numpy()

    @cached_property
    def scoring(self) -> Cost:
        """A query's gradient and the scoring of its candidates, as the library does them for every influence method."""
        scorer = InfluenceScorer(self.side, self.side)
        scorer.score(self.world.queries, self.world.candidates)  # once to warm up
        with self.measured() as cost:
            scorer.score(self.world.queries, self.world.candidates)
        return Cost(cost.seconds / self.c.queries, cost.memory)

    @contextmanager
    def measured(self) -> Iterator[Cost]:
        """The cost of the block, once it has ended."""
        cost = Cost()
        with peak_memory(self.device) as memory:
            start = self.clock()
            yield cost
            cost.seconds = self.clock() - start
        cost.memory = memory.bytes

    def clock(self) -> float:
        """Seconds, see ``Cost``."""
        return clock(self.device)

    def fitted(self, name: str, data: list[Batch], samples: int = 1, side: Side | None = None) -> tuple[Factors, Cost]:
        """Factors and what they took; kept from an earlier run, and begun anew after a broken one."""
        side = side or self.side
        settings = {"model": self.made_of, "sequences": sum(map(len, data)), "labels": samples, "seed": self.seed}

        def build(folder: Path) -> None:
            with self.measured() as cost:
                fit(side.model, side.tracked, side.objective, data, folder / "factors", FitSettings(**fitting))
            write_json(folder / "cost.json", asdict(cost))

        fitting: dict[str, Any] = {"label_samples": samples, "seed": self.seed}
        folder = built(self.output / "factors" / name, settings, build, overwrite=True)
        return FactorStore.open(folder / "factors").load_all(), Cost(**read(folder / "cost.json"))

    def fitting_data(self, count: int) -> list[Batch]:
        """The first sequences of the training text in a random order of its own."""
        order = np.random.default_rng(self.seed).permutation(len(self.world.training))[:count]
        return batches([self.world.training[i].input_ids.tolist() for i in order], self.c.batch_size)

    @cached_property
    def eigenpairs(self) -> tuple[Eigenpairs, Cost]:
        """H's top eigenpairs by Arnoldi, once for all dampings; they are kept on disk as their products are dear."""
        iterations, top = self.c.arnoldi
        path = self.output / "eigenpairs" / "pairs.pt"

        def build(folder: Path) -> None:
            with self.measured() as cost:
                found = top_eigenpairs(self.ggn, self.gradients, top=top, iterations=iterations, seed=self.seed)
            torch.save({"pairs": asdict(found), "cost": asdict(cost)}, folder / path.name)

        settings = {"model": self.made_of, "arnoldi": self.c.arnoldi, "solving": self.c.solving, "seed": self.seed}
        built(path.parent, settings, build, overwrite=True)
        kept = torch.load(path, map_location=self.device)
        return Eigenpairs(**kept["pairs"]), Cost(**kept["cost"])

    @cached_property
    def factors(self) -> Factors:
        """EK-FAC of H: fitted on the solving set."""
        return self.fitted("ekfac", self.world.solving)[0]

    def shift(self, damping: str) -> Scale:
        """λ by name: one number, or one for each block, which is then the same for every method."""
        if damping not in self._shifts:
            self._shifts[damping] = self._shift(damping)
        return self._shifts[damping]

    def _shift(self, damping: str) -> Scale:
        if damping == NATURAL:
            return {name: 1 / tau for name, tau in self._tau().items()}
        if damping == RELATIVE:
            inverse = DampedInverse()
            shifts = {name: inverse.shift(self._lambda(name), name) for name in self.factors}
            return {name: shift.flatten() for name, shift in shifts.items()}
        return float(damping)

    def _tau(self) -> dict[str, Tensor]:
        tau = natural_tau(self.world.model, self.side.model, list(self.side.tracked))
        return {name: value.to(self.device) for name, value in tau.items()}

    def _lambda(self, name: str) -> Tensor:
        Lambda = self.factors[name].Lambda
        assert Lambda is not None
        return Lambda.to(self.device)

    def mean_shift(self, damping: str) -> float:
        """λ as one number, for the methods that have no blocks: its mean over parameters."""
        shift = self.shift(damping)
        if isinstance(shift, float):
            return shift
        sizes = {module.name: module.shape[0] * module.shape[1] for module in self.side.tracked}
        return sum(float(shift[name].mean()) * size for name, size in sizes.items()) / sum(sizes.values())

    def damped(self, damping: str) -> Damped:
        return Damped(self.ggn, self.side.tracked, self.shift(damping))

    def inverse(self, damping: str, factors: Factors | None = None) -> EKFAC:
        return EKFAC(factors or self.factors, DampedInverse(self.shift(damping)))

    def residuals(self, x: Vectors, damping: str) -> dict[str, list[float]]:
        """‖b − (H + D) x‖ / ‖b‖ on the solver's own sequences, and with H of the held-out ones."""
        held_out = GGN(self.side.model, self.side.tracked, self.side.objective, self.world.held_out)
        own = relative_residual(self.damped(damping), x, self.gradients)
        other = relative_residual(Damped(held_out, self.side.tracked, self.shift(damping)), x, self.gradients)
        return {"residual": own.tolist(), "held_out_residual": other.tolist()}
