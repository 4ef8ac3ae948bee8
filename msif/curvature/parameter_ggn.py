"""Exact Gauss-Newton products over any parameters of a model: also its embeddings, norms and unembedding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from msif.curvature.ggn import GaussNewton, Linearised
from msif.curvature.parameters import Parameter, ParameterFunction
from msif.curvature.vectors import Vectors
from msif.models.capture import FiniteGuard
from msif.models.objectives import Objective


class ParameterGGN(GaussNewton[Parameter]):
    """H over parameters, (Q, rows, columns) each; ``all_parameters(model)`` lists them.

    Every parameter carries its tangent through the forward pass, so whatever the model does with it is right: tied
    weights, a module that runs twice. Products take float32 or float64.
    """

    @contextmanager
    def _linearised(self) -> Iterator[Linearised]:
        with ParameterFunction(self.model, self.tracked, self.objective) as function:
            yield _LinearisedParameters(function)


class _LinearisedParameters:
    def __init__(self, function: ParameterFunction) -> None:
        self.function = function
        self._guard = FiniteGuard("the curvature product")

    def add_product(self, objective: Objective, batch: Any, vectors: Vectors, sums: Vectors, query: int) -> None:
        product = self.function.product(
            batch, vectors, query, lambda outputs, tangent: objective.loss_hessian_product(outputs, tangent, batch)
        )
        for name, g in product.items():
            sums[name][query] += g.to(sums[name].dtype)
            self._guard.watch(name, g.sum())
        self._guard.check(batch)
