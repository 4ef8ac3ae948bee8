"""Gradients by hooks against autograd's own, once for a model: what hooks cannot see is told before it is believed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from msif.errors import MsifError
from msif.models.blocks import TrackedModule, as_matrix, stored
from msif.models.outer import Outer
from msif.models.sharding import is_sharded

log = logging.getLogger(__name__)

# of the sum of the norms of all terms: what sums in another order, and gradients rounded to the weights' dtype, differ
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3}
HALF_TOLERANCE = 0.03

_checked: WeakKeyDictionary[nn.Module, set[TrackedModule]] = WeakKeyDictionary()


class Pass(Protocol):
    """A forward pass, and a backward pass from a cotangent; the names of the parameters that the first used."""

    def __call__(self, consumer: Any, batch: Any, cotangent: Any, within: AbstractContextManager[None]) -> set[str]: ...


def is_checked(model: nn.Module, tracked: Sequence[TrackedModule]) -> bool:
    """Whether there is nothing to do: done before, or of weights that are not here whole or at all."""
    if is_sharded(model) or any(parameter.is_meta for parameter in model.parameters()):
        return True
    return set(tracked) <= _checked.get(model, set())


def check_gradients(
    model: nn.Module, tracked: Sequence[TrackedModule], batch: Any, run: Pass, scale: float = 1.0
) -> None:
    """Compares a random projection of each parameter's gradient, for the outputs of the first sequence alone.

    So that a use that no hook sees, rows that are not a position's, and rows of another sequence are told apart from
    what is right. One small batch, of at least two sequences of different lengths; its weights' gradients are formed
    one at a time. What does not run is named in a warning.

    Args:
        scale: of autograd's own gradients.

    Raises:
        MsifError: the first parameter of which they differ.
    """
    small = batch.pair() if hasattr(batch, "pair") else batch
    own, by_hooks = _Gradients(model, tracked, scale), _Projected()
    dtype = max((parameter.dtype for parameter in model.parameters()), key=_coarseness)
    with torch.random.fork_rng(devices=[]):
        ran = run(by_hooks, small, _first_alone, own.formed())
    idle = [module.name for module in tracked if module.name not in ran]
    if idle:
        log.warning("Not tracked: %s (the forward pass does not run them as modules)", ", ".join(idle))
    for module in tracked:
        if module.name in ran and not _agree(module, own, by_hooks, dtype):
            raise MsifError(
                f"the gradient of module '{module.name}' is not what its inputs and outputs tell (its weight is used "
                "past the module, or its rows are not the batch's positions in order): leave it out with --modules."
            )
    _checked.setdefault(model, set()).update(tracked)


def _first_alone(outputs: Tensor, batch: Any) -> Tensor:
    """A random gradient of length one, of the first sequence's outputs."""
    gradient = torch.zeros_like(outputs)
    drawn = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(0))
    gradient[0] = (drawn / drawn.norm()).to(gradient)
    return gradient


def _agree(module: TrackedModule, own: _Gradients, by_hooks: _Projected, dtype: torch.dtype) -> bool:
    expected = own.projections.get(module.name)
    found, size = by_hooks.projections.get(module.name), by_hooks.sizes.get(module.name, 0.0)
    if expected is None or found is None:
        return (found is None or size == 0.0) and (expected is None or not bool(expected.any()))
    difference = found.clone()
    difference[0] -= expected
    bound = TOLERANCE.get(dtype, HALF_TOLERANCE) * (size + float(expected.norm()))
    # float16 may overflow where a loss's own gradient would not
    return not difference.isfinite().all() or float(difference.norm()) <= bound


def _direction(module: TrackedModule) -> Tensor:
    """u (d_out,): every uᵀ∇ is of one."""
    return torch.randn(module.d_out, generator=torch.Generator().manual_seed(1))


class _Gradients:
    """uᵀ∇ of each parameter by autograd, (d,); each gradient goes as soon as it is there."""

    def __init__(self, model: nn.Module, tracked: Sequence[TrackedModule], scale: float) -> None:
        self.model, self.tracked, self.scale = model, tracked, scale
        self.projections: dict[str, Tensor] = {}

    @contextmanager
    def formed(self) -> Iterator[None]:
        """Within, weights and biases of all that is tracked, which are frozen, have gradients; none after."""
        owners = [(module, place, p) for module in self.tracked for place, p in enumerate(stored(self.model, module))]
        kept = [(p, p.grad) for _, _, p in owners if p is not None]
        handles = []
        try:
            for module, place, p in owners:
                if p is not None:
                    p.requires_grad_(True)
                    p.grad = None
                    handles.append(p.register_post_accumulate_grad_hook(self._taker(module, place)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for p, gradient in kept:
                p.requires_grad_(False)
                p.grad = gradient

    def _taker(self, module: TrackedModule, place: int) -> Any:
        def take(parameter: Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None
            parameter.grad = None
            whole = gradient[:, None] if place else as_matrix(self.model, module, gradient)
            part = _wide(_direction(module).to(gradient.device)) @ _wide(whole) / self.scale
            found = self.projections.setdefault(module.name, part.new_zeros(module.shape[1]))
            found[module.d_in :] += part if place else 0.0
            found[: module.d_in] += 0.0 if place else part

        return take


class _Projected:
    """uᵀ∇ of each parameter and sequence by hooks, (B, d), and the sum of its terms' norms."""

    def __init__(self) -> None:
        self.projections: dict[str, Tensor] = {}
        self.sizes: dict[str, float] = {}

    def begin(self, batch: Any, objective: Any) -> None: ...

    def end(self, batch: Any) -> None: ...

    def right(self, module: TrackedModule, right: Tensor) -> Tensor:
        return right

    def backward(self, module: TrackedModule, uses: Sequence[Outer]) -> None:
        for use in uses:
            wide = Outer(use.left if use.lookup else _wide(use.left), _wide(use.right), use.bias)
            u = _wide(_direction(module).to(use.right.device))
            weights = wide.mapped(u[:, None])
            part = (weights * wide.right).sum(1)
            if use.bias:
                part = torch.cat([part, weights.sum(1)], 1)
            self.projections[module.name] = self.projections.get(module.name, 0.0) + part
            left = 1.0 if use.lookup else wide.left.norm(dim=2)
            size = float((left * (wide.right.norm(dim=2) + float(use.bias))).sum())
            self.sizes[module.name] = self.sizes.get(module.name, 0.0) + size


def _coarseness(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if dtype.is_floating_point else 0.0


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)
