"""Exact products with the Gauss-Newton matrix H of the mean per-token loss (docs/method.md).

    H = (1/N) Σ_z J_zᵀ [∇² of the loss in the outputs] J_z

over the tracked maps (``GGN``) or over any parameters (``ParameterGGN``). J v is a forward-mode derivative
(``msif.curvature.tangents``), Jᵀ u a backward pass: a product costs about two forward passes and one backward pass over
the data for each vector. All of it runs in float32 or better, whatever the model's dtype.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from msif.curvature.inputs import device_and_dtype
from msif.curvature.tangents import AnyModel, Tangents
from msif.curvature.vectors import Part, Vectors
from msif.errors import MsifError
from msif.models.blocks import TrackedModule, input_of
from msif.models.capture import Capture, FiniteGuard, widened
from msif.models.objectives import Objective


class Operator(Protocol):
    """A symmetric positive semi-definite matrix, known by its products."""

    def matvec(self, vectors: Vectors) -> Vectors:
        """H v for Q vectors at once."""


class Linearised(Protocol):
    """A model around its parameters, for one product."""

    def add_product(self, objective: Objective, batch: Any, vectors: Vectors, sums: Vectors, query: int) -> None:
        """sums[query] += Σ_z Jᵀ [∇² L] J v of a batch."""


P = TypeVar("P", bound=Part)


class GaussNewton(ABC, Generic[P]):
    """Products with H over a fixed set of sequences; a subclass says how v enters the model and Jᵀ u is read.

    Args:
        tracked: the parts of the vectors.
        batches: gone over once a product; a list, or anything that gives the same batches each time.

    Raises:
        MsifError: no data, an iterator, vectors over other parts, or a product that holds NaN or infinity.
    """

    def __init__(self, model: nn.Module, tracked: Sequence[P], objective: Objective, batches: Iterable[Any]) -> None:
        if iter(batches) is batches:
            raise MsifError("the data is gone over once a product: give a list of batches, not an iterator.")
        self.model, self.tracked, self.objective, self.batches = model, tracked, objective, batches
        self.device, self.dtype = device_and_dtype(model)
        self.products = 0

    def matvec(self, vectors: Vectors) -> Vectors:
        """H v for each of Q vectors, (Q, rows, columns) a part."""
        names = [part.name for part in self.tracked]
        if vectors.keys() != set(names):
            odd = sorted(vectors.keys() ^ set(names))[0]
            raise MsifError(f"'{odd}' is in the vectors or in the curvature only: track the same for both.")
        queries = next(iter(vectors.values())).shape[0]
        sums = {name: torch.zeros_like(vectors[name]) for name in names}
        supervised = 0
        with widened(self.model), self._linearised() as linearised:
            for batch in self.batches:
                batch = batch.to(self.device)
                supervised += int(self.objective.supervised_counts(batch).sum())
                for query in range(queries):
                    linearised.add_product(self.objective, batch, vectors, sums, query)
        if supervised == 0:
            raise MsifError("the data has no supervised token to take the curvature over.")
        self.products += queries
        return {name: total / supervised for name, total in sums.items()}

    @abstractmethod
    def _linearised(self) -> AbstractContextManager[Linearised]: ...


class GGN(GaussNewton[TrackedModule]):
    """H over tracked maps, (Q, d_out, d) each.

    Each map adds V x̄ to its output's tangent, so no weight needs a tangent of its own; of the backward pass only x and
    g are read.
    """

    def _linearised(self) -> AbstractContextManager[Linearised]:
        return _LinearisedMaps(self.model, self.tracked)


class _LinearisedMaps:
    """The model with tangents of its tracked maps: one forward pass gives outputs and J v."""

    def __init__(self, model: nn.Module, tracked: Sequence[TrackedModule]) -> None:
        self.model, self.tracked = model, tracked
        self._any_model = AnyModel()
        self._added: Callable[[TrackedModule, Tensor, Tensor], Tensor]

    def __enter__(self) -> _LinearisedMaps:
        self._consumer = _WeightGradients()
        with ExitStack() as stack:
            # fused attention kernels have no forward-mode derivative
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            self._capture = stack.enter_context(Capture(self.model, self.tracked, self._consumer))
            # after the capture's own hooks, which detach the first maps' outputs, and tangents with them
            for module in self.tracked:
                hook = self._tangent_hook(module)
                handle = self.model.get_submodule(module.path).register_forward_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def add_product(self, objective: Objective, batch: Any, vectors: Vectors, sums: Vectors, query: int) -> None:
        self._consumer.sums, self._consumer.query = sums, query

        def run(tangents: Tangents) -> None:
            def added(module: TrackedModule, x: Tensor, output: Tensor) -> Tensor:
                V = vectors[module.name][query].to(x.dtype)
                moved = x @ V[:, : module.d_in].T
                return tangents.attach(output, moved + V[:, -1] if module.bias else moved)

            def cotangent(outputs: Tensor, batch: Any) -> Tensor:
                tangent = tangents.read(outputs)
                if tangent is None:
                    raise MsifError("the model's outputs depend on no tracked module: choose other --modules.")
                return objective.loss_hessian_product(outputs.detach(), tangent, batch)

            self._added = added
            self._capture.run(objective, batch, [cotangent])

        self._any_model.run(run)

    def _tangent_hook(self, module: TrackedModule) -> Callable[..., Tensor]:
        def hook(inner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            return self._added(module, input_of(inner, args, kwargs).detach(), output)

        return hook


class _WeightGradients:
    """Adds Σ_z Σ_t g_t x̄_tᵀ of a batch to one vector of each module."""

    sums: Vectors
    query: int

    def __init__(self) -> None:
        self._guard = FiniteGuard("the curvature product")

    def begin(self, batch: Any, objective: Objective) -> None: ...

    def forward(self, module: TrackedModule, x: Tensor) -> Tensor:
        return x

    def backward(self, module: TrackedModule, saved: Tensor, g: Tensor) -> None:
        total = self.sums[module.name][self.query]
        rows = g.flatten(0, 1).to(total.dtype)
        total[:, : module.d_in] += rows.T @ saved.flatten(0, 1).to(total.dtype)
        if module.bias:
            total[:, -1] += rows.sum(0)
        self._guard.watch(module.name, total.sum())

    def end(self, batch: Any) -> None:
        self._guard.check(batch)
