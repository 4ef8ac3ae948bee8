"""τ of a training as the evidence has it, from the weights that it left and their curvature (docs/evidence.md)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msif.attribution.gradients import Side
from msif.curvature.evidence import evidence_pull
from msif.curvature.factors import Factors
from msif.models.blocks import stored
from msif.models.select import match_modules
from msif.models.training import TrainingUnknown


def evidence_tau(side: Side, factors: Factors, tokens: int, before: Side | None = None) -> dict[str, Tensor]:
    """τ of every block of a stage: module name -> (nb,), in units of 1/curvature; 1/τ is the damping, λ or α.

    It stands in for ``natural_tau`` where nothing tells how long a training was. Blocks of a module have one number.

    Args:
        tokens: N, supervised tokens of the data that its curvature is of.
        before: where the weights began, for a stage that starts from another's; the modules that it lacks are left out.
            None takes them to have begun at zero.

    Raises:
        TrainingUnknown: a module has not moved, or no curvature.
    """
    starts = {} if before is None else {module.name: module for module in before.tracked}
    names = [module.name for module in side.tracked]
    if before is not None:
        names, _ = match_modules(list(side.tracked), list(before.tracked))
    found = {}
    for module in side.restricted(names).tracked:
        weights = stored(side.model, module)
        began = (None, None) if before is None else stored(before.model, starts[module.name])
        squared = sum(_squared(*pair) for pair in zip(weights, began, strict=True))
        if squared == 0:
            raise TrainingUnknown(f"'{module.name}' has not moved", "leave out with --modules what was frozen")
        spectrum = factors[module.name].Lambda
        assert spectrum is not None
        if not bool((spectrum > 0).any()):
            raise TrainingUnknown(f"'{module.name}' has no curvature", "leave it out with --modules")
        pull = evidence_pull(spectrum, squared, tokens)
        found[module.name] = torch.full((len(module.blocks),), 1 / pull)
    return found


def _squared(weight: Tensor | None, began: Tensor | None) -> float:
    """‖Δ‖² of a parameter."""
    if weight is None:
        return 0.0
    way = _whole(weight)
    if began is not None:
        way = way - _whole(began).to(way.device)
    return float(way.square().sum(dtype=torch.float64))


def _whole(parameter: Any) -> Tensor:
    """In float32 at least, from all processes where it is shared out."""
    own = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
    own = own.detach()
    return own.float() if own.dtype.itemsize < 4 else own
