"""The learning rates of torch's own schedulers, played again from their state."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

LONGEST = 100_000  # steps that are played

# by what only their states have; their arguments
PLAYED: dict[str, tuple[type[lr_scheduler.LRScheduler], tuple[str, ...]]] = {
    "step_size": (lr_scheduler.StepLR, ("step_size", "gamma")),
    "milestones": (lr_scheduler.MultiStepLR, ("milestones", "gamma")),
    "T_max": (lr_scheduler.CosineAnnealingLR, ("T_max", "eta_min")),
    "T_0": (lr_scheduler.CosineAnnealingWarmRestarts, ("T_0", "T_mult", "eta_min")),
    "start_factor": (lr_scheduler.LinearLR, ("start_factor", "end_factor", "total_iters")),
    "power": (lr_scheduler.PolynomialLR, ("total_iters", "power")),
    "total_iters": (lr_scheduler.ConstantLR, ("factor", "total_iters")),
    "gamma": (lr_scheduler.ExponentialLR, ("gamma",)),
}


def is_ordinary(state: Mapping[str, Any] | None) -> bool:
    """Whether a scheduler is one of ``transformers``, which keep no more than that they have a lambda."""
    return state is None or "lr_lambdas" in state


def played(state: Mapping[str, Any], steps: int, group: int) -> list[float] | None:
    """The rates of a group from step 0 to ``steps``; None where the scheduler is not known."""
    known = next((PLAYED[sign] for sign in PLAYED if sign in state and "total_size" not in state), None)
    if known is None or steps > LONGEST or not state.get("base_lrs"):
        return None
    kind, names = known
    arguments = {name: state[name] for name in names}
    if "milestones" in arguments:  # a counter
        arguments["milestones"] = sorted(arguments["milestones"].elements())
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=float(state["base_lrs"][group]))
    scheduler = kind(optimizer, **arguments)
    rates = [optimizer.param_groups[0]["lr"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer takes no step
        for _ in range(steps):
            scheduler.step()
            rates.append(optimizer.param_groups[0]["lr"])
    return [float(rate) for rate in rates]
