"""Exact products with the Gauss-Newton matrix H of the mean per-token loss (docs/method.md).

    H = (1/N) Σ_z J_zᵀ [∇² of the loss in the outputs] J_z

over the tracked parameters. J v is a forward-mode derivative
(``msif.curvature.tangents``), Jᵀ u a backward pass: a product costs about two forward passes and one backward pass over
the data for each vector. All of it runs in float32 or better, whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from msif.curvature.inputs import device_and_dtype
from msif.curvature.tangents import AnyModel, Tangents
from msif.curvature.vectors import Vectors
from msif.errors import MsifError
from msif.models.blocks import TrackedModule, Use
from msif.models.capture import Consumer, FiniteGuard, widened
from msif.models.check import CheckedCapture
from msif.models.objectives import Objective
from msif.models.outer import Outer, add_total
from msif.models.uses import Reading, read


class Operator(Protocol):
    """A symmetric positive semi-definite matrix, known by its products."""

    def matvec(self, vectors: Vectors) -> Vectors:
        """H v for Q vectors at once."""


class GGN:
    """Products with H over a fixed set of sequences, for vectors (Q, d_out, d) of each tracked parameter.

    Each use of a parameter adds V x̄ (a row of V, V ⊙ x̂) to its output's tangent, so no weight needs a tangent of its
    own; of the backward pass only both sides of the gradient are read.

    Args:
        batches: gone over once a product; a list, or anything that gives the same batches each time.

    Raises:
        MsifError: no data, an iterator, vectors over other parameters, or a product that holds NaN or infinity.
    """

    def __init__(
        self, model: nn.Module, tracked: Sequence[TrackedModule], objective: Objective, batches: Iterable[Any]
    ) -> None:
        if iter(batches) is batches:
            raise MsifError("the data is gone over once a product: give a list of batches, not an iterator.")
        self.model, self.tracked, self.objective, self.batches = model, tracked, objective, batches
        self.device, self.dtype = device_and_dtype(model)
        self.products = 0

    def matvec(self, vectors: Vectors) -> Vectors:
        """H v for each of Q vectors, (Q, d_out, d) a parameter."""
        names = [module.name for module in self.tracked]
        if vectors.keys() != set(names):
            odd = sorted(vectors.keys() ^ set(names))[0]
            raise MsifError(f"'{odd}' is in the vectors or in the curvature only: track the same for both.")
        queries = next(iter(vectors.values())).shape[0]
        sums = {name: torch.zeros_like(vectors[name]) for name in names}
        supervised = 0
        with widened(self.model), _Linearised(self.model, self.tracked) as linearised:
            for batch in self.batches:
                batch = batch.to(self.device)
                supervised += int(self.objective.supervised_counts(batch).sum())
                for query in range(queries):
                    linearised.add_product(self.objective, batch, vectors, sums, query)
        if supervised == 0:
            raise MsifError("the data has no supervised token to take the curvature over.")
        self.products += queries
        return {name: total / supervised for name, total in sums.items()}


class _Linearised:
    """The model with tangents of its tracked maps: one forward pass gives outputs and J v."""

    def __init__(self, model: nn.Module, tracked: Sequence[TrackedModule]) -> None:
        self.model, self.tracked = model, tracked
        self._any_model = AnyModel()
        self._added: Callable[[TrackedModule, Reading, Tensor], Tensor]
        self._size: tuple[int, int]

    def __enter__(self) -> _Linearised:
        self._consumer = _WeightGradients()
        with ExitStack() as stack:
            # fused attention kernels have no forward-mode derivative
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            self._capture = stack.enter_context(CheckedCapture(self.model, self.tracked, self._consumer))
            # after the capture's own hooks, which detach the first maps' outputs, and tangents with them
            for module in self.tracked:
                for use in module.uses:
                    hook = self._tangent_hook(module, use)
                    handle = self.model.get_submodule(use.path).register_forward_hook(hook, with_kwargs=True)
                    stack.callback(handle.remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def add_product(self, objective: Objective, batch: Any, vectors: Vectors, sums: Vectors, query: int) -> None:
        self._consumer.sums, self._consumer.query = sums, query

        def run(tangents: Tangents) -> None:
            def added(module: TrackedModule, reading: Reading, output: Tensor) -> Tensor:
                moved = reading.along(vectors[module.name][query])
                return tangents.attach(output, moved.to(output.dtype).expand_as(output))

            def cotangent(outputs: Tensor, batch: Any) -> Tensor:
                tangent = tangents.read(outputs)
                if tangent is None:
                    raise MsifError("the model's outputs depend on no tracked module: choose other --modules.")
                return objective.loss_hessian_product(outputs.detach(), tangent, batch)

            B, T = objective.live(batch).shape
            self._added, self._size = added, (B, T)
            self._capture.run(objective, batch, [cotangent])

        self._any_model.run(run)

    def _tangent_hook(self, module: TrackedModule, use: Use) -> Callable[..., Tensor]:
        def hook(inner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            if not self._capture.running:
                return output
            return self._added(module, read(module, use, inner, args, kwargs, output, self._size), output)

        return hook


class _WeightGradients(Consumer):
    """Adds Σ_z ∇ of a batch to one vector of each parameter."""

    sums: Vectors
    query: int

    def __init__(self) -> None:
        self._guard = FiniteGuard("the curvature product")

    def backward(self, module: TrackedModule, uses: Sequence[Outer]) -> None:
        total = self.sums[module.name][self.query]
        add_total(total, uses)
        self._guard.watch(module.name, total.sum())

    def end(self, batch: Any) -> None:
        self._guard.check(batch)
