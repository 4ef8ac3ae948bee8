"""J v: how a model's outputs move when its parameters move along v; forward mode where every operation has it.

Forward mode costs one more forward pass. An operation without it (custom autograd functions, grouped products of
experts) is differentiated backward twice instead: J v = ∂/∂u ⟨u, ∂outputs/∂ε⟩ at ε = 0, for any u.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol, TypeVar

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor

from msif.errors import one_line

log = logging.getLogger(__name__)

R = TypeVar("R")


class Tangents(Protocol):
    """A way to carry tangents through one forward pass."""

    def attach(self, value: Tensor, tangent: Tensor) -> Tensor:
        """The value, moving along the tangent, beside whatever it moves along already."""
        ...

    def read(self, outputs: Tensor) -> Tensor | None:
        """J v in the outputs' shape, detached; None where they do not move. Once; a backward pass may follow."""
        ...


class AnyModel:
    """Runs one forward pass after the other with tangents, in forward mode for as long as the model allows it."""

    def __init__(self) -> None:
        self._forward = True

    def run(self, with_tangents: Callable[[Tangents], R]) -> R:
        """``with_tangents(tangents)``; called again from its start when an operation turns out to lack forward mode."""
        if self._forward:
            try:
                with ExitStack() as level:
                    level.enter_context(forward_mode.dual_level())
                    return with_tangents(_ForwardMode(level))
            except (NotImplementedError, RuntimeError) as error:
                if not _lacks_forward_mode(error):
                    raise
                log.info("curvature products by two more backward passes: %s", one_line(error))
                self._forward = False
        with torch.enable_grad():
            return with_tangents(_TwiceBackward())


def _lacks_forward_mode(error: Exception) -> bool:
    return any(sign in str(error) for sign in ("forward AD", "forward-mode AD", "forward mode AD", "jvp"))


class _ForwardMode:
    def __init__(self, level: ExitStack) -> None:
        self._level = level

    def attach(self, value: Tensor, tangent: Tensor) -> Tensor:
        primal, already = forward_mode.unpack_dual(value)
        return forward_mode.make_dual(primal, tangent if already is None else already + tangent)

    def read(self, outputs: Tensor) -> Tensor | None:
        tangent = forward_mode.unpack_dual(outputs).tangent
        found = None if tangent is None else tangent.detach().clone()
        # tangents end here: a backward pass would else need the derivatives of derivatives
        self._level.close()
        return found


class _TwiceBackward:
    def __init__(self) -> None:
        self._step: Tensor | None = None

    def attach(self, value: Tensor, tangent: Tensor) -> Tensor:
        if self._step is None:
            self._step = torch.zeros((), device=value.device, dtype=value.dtype, requires_grad=True)
        return value + self._step * tangent

    def read(self, outputs: Tensor) -> Tensor | None:
        if self._step is None or not outputs.requires_grad:
            return None
        u = torch.zeros_like(outputs, requires_grad=True)
        (along,) = torch.autograd.grad(outputs, self._step, u, create_graph=True, allow_unused=True)
        return None if along is None else torch.autograd.grad(along, u)[0]
