"""Gradients by hooks against autograd's own, once for a model: what hooks cannot see is told before it is believed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from msif.data.documents import Batch
from msif.errors import MsifError, one_line
from msif.models.blocks import TrackedModule, as_matrix, stored
from msif.models.capture import Capture, Consumer, Cotangent
from msif.models.objectives import Objective
from msif.models.outer import CHUNK_ELEMENTS, Outer
from msif.models.sharding import is_sharded

log = logging.getLogger(__name__)

# Of the root of the squared norms of all terms, by the coarsest dtype of the weights: as roundings add up, and so that
# it is as sharp with many positions as with few. Both sides are products of the same g and x, so that they differ by
# roundings of these alone: some 2⁻⁸ in bfloat16, 2⁻¹⁰ where float32 is multiplied as TF32, 2⁻²³ where norms of a
# float64 model compute in float32. What is wrong is mostly wrong by a tenth.
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-2}
HALF_TOLERANCE = 0.03

# of how many sequences at once a model's gradients, by a kind of objective, were found right: one, or (as 2) several
_checked: WeakKeyDictionary[nn.Module, dict[tuple[type[Objective], TrackedModule], int]] = WeakKeyDictionary()


def check_once(model: nn.Module, tracked: Sequence[TrackedModule], objective: Objective, batch: Any) -> None:
    """Compares a random projection of each parameter's gradient, for the outputs of the first sequence alone.

    So that a use that no hook sees, rows that are not a position's, and rows of another sequence are told apart from
    what is right. A pass forward and back over a few tokens (of a batch of the caller's own kind, over all of it) the
    first time that a model is given one sequence, and several, if these were not first; weights' gradients are formed
    one at a time. A model that does not take these tokens is not checked, and neither is it again when it has changed.

    Raises:
        MsifError: the first parameter of which they differ, and what ``Capture`` refuses.
    """
    done, sequences = _checked.setdefault(model, {}), min(len(batch), 2)
    keys = [(type(objective), module) for module in tracked]
    if all(done.get(key, 0) >= sequences for key in keys) or not _is_whole(model):
        return
    try:
        wrong = _found(model, tracked, objective, batch)
    except MsifError:
        raise
    except Exception as error:  # whatever a model asks of its inputs that these are not
        log.info("gradients were not checked against autograd's: %s", one_line(error))
        return
    if wrong is not None:
        raise MsifError(
            f"the gradient of module '{wrong}' is not what its inputs and outputs tell (its weight is used past the "
            "module, or its rows are not the batch's positions in order): leave it out with --modules."
        )
    done.update(dict.fromkeys(keys, sequences))


def _found(model: nn.Module, tracked: Sequence[TrackedModule], objective: Objective, batch: Any) -> str | None:
    """By a few tokens of two documents, or by all of theirs where the model, or a module of it, takes no so few."""
    if isinstance(batch, Batch):
        with suppress(Exception):
            looked = _look(model, tracked, objective, batch.pair())
            if looked.wrong is not None or not looked.idle:
                return looked.wrong
        batch = batch.pair(batch.input_ids.shape[1])
    looked = _look(model, tracked, objective, batch)
    if looked.past:
        log.warning("Not tracked: %s (the forward pass does not run them as modules)", ", ".join(looked.past))
    return looked.wrong


def _is_whole(model: nn.Module) -> bool:
    """Whether autograd has all weights here alone: none of a meta tensor, and all processes' in shards and replicas."""
    replicated = any(isinstance(module, DistributedDataParallel) for module in model.modules())
    return not replicated and not is_sharded(model) and not any(p.is_meta for p in model.parameters())


@dataclass
class _Looked:
    """What was seen: the first parameter of which both gradients differ, those whose module did not run, and of these
    what has a gradient all the same, so that it is used past its module only."""

    wrong: str | None
    idle: list[str]
    past: list[str]


def _look(model: nn.Module, tracked: Sequence[TrackedModule], objective: Objective, batch: Any) -> _Looked:
    own, by_hooks = _Own(model, tracked), _ByHooks()
    devices = [parameter.device for parameter in model.parameters() if parameter.is_cuda][:1]
    with (
        torch.random.fork_rng(devices),
        _Blind(model, tracked, by_hooks) as capture,
        own.formed(),
    ):
        capture.run(objective, batch, [_first_alone])
    bounds = _Bounds(model, capture.scale)
    looked = _Looked(None, [module.name for module in tracked if module.name not in capture.ran], [])
    for module in tracked:
        expected = own.projection(module)
        if expected is None:
            continue
        expected = expected / capture.scale
        if module.name not in capture.ran:
            looked.past += [module.name] if expected.any() else []
        elif not by_hooks.agrees(module, expected, bounds):
            looked.wrong = module.name
            break
    return looked


def _first_alone(outputs: Tensor, batch: Any) -> Tensor:
    """A random gradient of length one, of the first sequence's outputs."""
    gradient = torch.zeros_like(outputs)
    drawn = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(0), device="cpu")
    gradient[0] = (drawn / drawn.norm()).to(gradient)
    return gradient


def _direction(module: TrackedModule) -> Tensor:
    """u (d_out,): every uᵀ∇ is of one."""
    return torch.randn(module.d_out, generator=torch.Generator().manual_seed(1), device="cpu")


class _Blind(Capture):
    """Leaves it to the pass itself to say that outputs are not finite, of documents that it can name."""

    def _look_at(self, outputs: Tensor, objective: Objective, batch: Any) -> None:
        pass


class _Own:
    """uᵀ∇ of each parameter by autograd, (d,); each gradient goes as soon as it is there."""

    def __init__(self, model: nn.Module, tracked: Sequence[TrackedModule]) -> None:
        self.model, self.tracked = model, tracked
        self._parts: dict[tuple[str, int], Tensor] = {}

    def projection(self, module: TrackedModule) -> Tensor | None:
        """None where no gradient came to the weight, or to the bias."""
        parts = [self._parts.get((module.name, place)) for place in range(1 + module.bias)]
        return None if any(part is None for part in parts) else torch.cat([part for part in parts if part is not None])

    @contextmanager
    def formed(self) -> Iterator[None]:
        """Within, weights and biases of all that is tracked have gradients; which was frozen, ``Capture`` sees to."""
        parameters = {module: [p for p in stored(self.model, module) if p is not None] for module in self.tracked}
        times = Counter(id(p) for parts in parameters.values() for p in parts)
        owners = [
            (module, place, p)
            for module, parts in parameters.items()
            # the gradient of a weight that is tracked twice is of both
            if all(_has_its_own(p) and times[id(p)] == 1 for p in parts)
            for place, p in enumerate(parts)
        ]
        kept = [(p, p.grad) for _, _, p in owners]
        handles = []
        try:
            for module, place, p in owners:
                p.requires_grad_(True)
                p.grad = None
                handles.append(p.register_post_accumulate_grad_hook(self._taker(module, place)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for p, gradient in kept:
                p.grad = gradient

    def _taker(self, module: TrackedModule, place: int) -> Any:
        def take(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            gradient = gradient.to_dense()
            part = _projected(module, gradient[:, None] if place else as_matrix(self.model, module, gradient))
            self._parts[module.name, place] = self._parts.get((module.name, place), 0.0) + part

        return take


def _has_its_own(parameter: Tensor) -> bool:
    """Whether a gradient would be its loss's: none is of a computed weight, and hooks may change it, or step on it."""
    watched = parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None)
    return isinstance(parameter, nn.Parameter) and not watched


def _projected(module: TrackedModule, whole: Tensor) -> Tensor:
    """uᵀ∇, float64, of ∇ (d_out, C): in float32 or better, with a few rows at a time in it."""
    kind = torch.promote_types(whole.dtype, torch.float32)
    u, step = _direction(module).to(whole.device, kind), max(1, CHUNK_ELEMENTS // whole.shape[1])
    parts = zip(u.split(step), whole.split(step), strict=True)
    return torch.stack([(some @ rows.to(kind)).double() for some, rows in parts]).sum(0)


class _Bounds:
    """How far two projections of one gradient may be apart."""

    def __init__(self, model: nn.Module, scale: float) -> None:
        kinds = [parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()]
        coarsest = max(kinds, key=lambda kind: torch.finfo(kind).eps)
        self.relative = TOLERANCE.get(coarsest, HALF_TOLERANCE)
        # whatever is smaller than a float16 vanishes in autograd's gradient only
        self.least = 2.0**-24 / scale if torch.float16 in kinds else 0.0

    def of(self, module: TrackedModule, size: float) -> float:
        return self.relative * size + self.least * (module.d_out * module.d_in) ** 0.5


class _ByHooks(Consumer):
    """uᵀ∇ of each parameter and sequence by hooks, (B, d), and the sum of its terms' squared norms."""

    def __init__(self) -> None:
        self._projections: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}

    def backward(self, module: TrackedModule, uses: Sequence[Outer]) -> None:
        u = _direction(module).to(uses[0].right.device, torch.float64)
        for use in uses:
            found = [_of_one(use.of(slice(row, row + 1)).to(torch.float64), u) for row in range(len(use.right))]
            parts, squares = (torch.cat(rows) for rows in zip(*found, strict=True))
            self._projections[module.name] = self._projections.get(module.name, 0.0) + parts
            self._squares[module.name] = self._squares.get(module.name, 0.0) + squares.sum()

    def agrees(self, module: TrackedModule, expected: Tensor, bounds: _Bounds) -> bool:
        """With uᵀ∇ (d,) of the first sequence, and 0 of all others."""
        difference, size = -expected[None], expected.norm()
        if module.name in self._projections:
            difference, size = self._projections[module.name].clone(), size + self._squares[module.name].sqrt()
            difference[0] -= expected
        # what overflows is told of the batch itself
        return not difference.isfinite().all() or float(difference.norm()) <= bounds.of(module, float(size))


def _of_one(use: Outer, u: Tensor) -> tuple[Tensor, Tensor]:
    """uᵀ∇ (1, d) of one sequence, and Σ ‖left‖² ‖right‖² of its terms, (1,); in float64, one at a time."""
    weights = use.mapped(u[:, None])
    part = (weights * use.right).sum(1)
    left = 1.0 if use.lookup else use.left.square().sum(2)
    squares = (left * (use.right.square().sum(2) + float(use.bias))).sum(1)
    return (torch.cat([part, weights.sum(1)], 1) if use.bias else part), squares


class CheckedCapture(Capture):
    """A ``Capture`` that looks at the model first, see ``check_once``; what passes over data use.

    Raises:
        MsifError: also gradients that are not autograd's own.
    """

    _sequences = 0  # of the largest batch that was looked at, of two

    def run(self, objective: Objective, batch: Any, cotangents: Sequence[Cotangent]) -> Tensor:
        if cotangents and self._sequences < min(len(batch), 2):
            self._phase = "idle"  # also after a pass that failed
            try:
                check_once(self.model, self.tracked, objective, batch)
            except MsifError:
                super().run(objective, batch, cotangents)  # which refuses the batch itself, where it can tell
                raise
            self._sequences = min(len(batch), 2)
        return super().run(objective, batch, cotangents)
