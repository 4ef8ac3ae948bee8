"""A preconditioner over all parameters: EK-FAC on the tracked maps, the diagonal of H on what is left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from msif.curvature.filters import Scale, per_block
from msif.curvature.parameters import Parameter, ParameterFunction
from msif.curvature.preconditioners import Preconditioner
from msif.curvature.vectors import Vectors
from msif.errors import MsifError
from msif.models.blocks import TrackedModule, is_transposed
from msif.models.capture import FiniteGuard
from msif.models.objectives import generators_for

DIAGONAL_STREAM = 8


def parameter_diagonal(
    function: ParameterFunction, batches: Iterable[Any], label_samples: int = 8, seed: int = 0
) -> dict[str, Tensor]:
    """An estimate of diag(H) by parameter, (rows, columns): the mean square of a batch's gradient at sampled labels.

    H = (1/N) Σ_z E[∇L(z, ŷ) ∇L(z, ŷ)ᵀ]. The gradients of a batch's sequences have mean zero and are independent, for
    their labels are drawn from the model, so E[(Σ_z ∇L(z, ŷ))²] = Σ_z E[∇L(z, ŷ)²]: the estimate is unbiased, whatever
    the batches. Cost: one forward pass, and one backward pass for each label sample.

    Raises:
        MsifError: the data has no supervised token, or a gradient holds NaN or infinity.
    """
    device = next(function.model.parameters()).device
    objective = function.objective
    totals: dict[str, Tensor] = {}
    supervised = 0
    guard = FiniteGuard("the sampled gradient")
    with function:
        for batch in batches:
            batch = batch.to(device)
            supervised += int(objective.supervised_counts(batch).sum())

            def sampled(outputs: Tensor, batch: Any = batch) -> Iterable[Tensor]:
                for draw in range(label_samples):
                    generators = generators_for(seed, DIAGONAL_STREAM, batch.indices, draw)
                    yield objective.sampled_loss_gradient(outputs, batch, generators)

            for gradient in function.pull_back(batch, sampled):
                for name, g in gradient.items():
                    guard.watch(name, g.sum())
                    totals[name] = totals.get(name, torch.zeros_like(g)) + g.square()
            guard.check(batch)
    if supervised == 0:
        raise MsifError("the data has no supervised token to take the curvature over.")
    return {name: total / (supervised * label_samples) for name, total in totals.items()}


class ParameterDiagonal(Preconditioner):
    """1/(diag(H) + λ) for each parameter.

    Args:
        diagonal: (rows, columns) by parameter, such as ``parameter_diagonal`` gives.

    Raises:
        MsifError: a parameter without a diagonal, or a zero that no damping lifts.
    """

    blockwise = True

    def __init__(self, diagonal: Mapping[str, Tensor], damping: Scale) -> None:
        self.diagonal, self.damping = diagonal, damping

    def apply(self, vectors: Vectors) -> Vectors:
        return {name: V / self._damped(name, V) for name, V in vectors.items()}

    def _damped(self, name: str, V: Tensor) -> Tensor:
        if name not in self.diagonal:
            raise MsifError(f"there is no diagonal for parameter '{name}': estimate it over the same parameters.")
        damped = self.diagonal[name].to(V.device, V.dtype) + per_block(self.damping, name, V)
        if not bool((damped > 0).all()):
            raise MsifError(f"the diagonal of parameter '{name}' has zeros: use --damping with a positive value.")
        return damped


class OverParameters(Preconditioner):
    """Applies ``maps`` to the tracked maps' weights and biases, as [W b] of each, and ``rest`` to all other parameters.

    Args:
        maps: over module names, such as EK-FAC.
        rest: over parameter names, such as ``ParameterDiagonal``.

    Raises:
        MsifError: a tracked map whose weight or bias is none of the parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        tracked: Sequence[TrackedModule],
        parameters: Sequence[Parameter],
        maps: Preconditioner,
        rest: Preconditioner,
    ) -> None:
        names = {parameter.path: parameter.name for parameter in parameters}
        self._entries = [_Entry(module, model.get_submodule(module.path), names) for module in tracked]
        self.maps, self.rest = maps, rest

    def apply(self, vectors: Vectors) -> Vectors:
        held = {name for entry in self._entries for name in entry.names}
        result = self.rest.apply({name: V for name, V in vectors.items() if name not in held})
        solved = self.maps.apply({entry.module: entry.join(vectors) for entry in self._entries})
        for entry in self._entries:
            result |= entry.split(solved[entry.module])
        return {name: result[name] for name in vectors}


class _Entry:
    """Where the W̄ = [W b] of a module is found among parameters."""

    def __init__(self, tracked: TrackedModule, module: nn.Module, names: Mapping[str, str]) -> None:
        self.module, self.columns = tracked.name, tracked.d_in
        self.transposed = is_transposed(module)
        own = tracked.uses[0].key
        paths = [f"{tracked.path}.{key}" for key in ((own, "bias") if tracked.bias else (own,))]
        missing = [path for path in paths if path not in names]
        if missing:
            raise MsifError(f"'{missing[0]}' of a tracked module is not among the parameters: track the same for both.")
        self.names = [names[path] for path in paths]

    def join(self, vectors: Vectors) -> Tensor:
        """(Q, d_out, d)."""
        weight = vectors[self.names[0]]
        parts = [weight.mT if self.transposed else weight, *(vectors[name].mT for name in self.names[1:])]
        return torch.cat(parts, dim=2)

    def split(self, V: Tensor) -> Vectors:
        """Weight and bias, as the parameters are stored."""
        weight = V[:, :, : self.columns]
        parts = [weight.mT if self.transposed else weight, V[:, :, self.columns :].mT]
        return dict(zip(self.names, parts, strict=False))
