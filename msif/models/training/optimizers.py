"""How far optimizers carry a parameter in a step: by η/root, the root read from a saved state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Entry = Mapping[str, Any]  # the state of one parameter
Group = Mapping[str, Any]


class Unusable(Exception):
    """What an optimizer is, of which the state says nothing of its steps: "is ..."."""


@dataclass(frozen=True)
class Rule:
    """An optimizer's.

    Attributes:
        shape: of the parameter; None where the entry does not say.
        root: (entry, group, weight) -> root of each of the weight's elements, in float32.
        stateless: whether it needs no entry.
    """

    shape: Callable[[Entry], torch.Size | None]
    root: Callable[[Entry, Group, Tensor], Tensor]
    stateless: bool = False


def rule_of(groups: Sequence[Group], entries: Sequence[Entry]) -> Rule:
    """The rule of the optimizer that left a state.

    Raises:
        Unusable: an optimizer whose step is no η/root, or that is not known.
    """
    keys, kept = set().union(*groups), set().union(*entries)
    name = next((name for sign, name in NO_ROOT.items() if sign in keys | kept), None)
    if name is None and kept - {"step"} == {"exp_avg"}:
        name = "Lion"
    if name is not None:
        raise Unusable(f"is {name}, and its state does not tell the scale of its steps")
    if "state1" in kept:
        return _bitsandbytes(groups[0], kept)
    if {"exp_avg_sq_row", "row_var"} & kept or {"clip_threshold", "beta2_decay"} & keys:
        return Rule(_factored_shape, _adafactor)
    if "exp_inf" in kept:
        return Rule(lambda entry: _shape(entry.get("exp_inf")), lambda entry, group, weight: entry["exp_inf"].float())
    if "centered" in keys:
        return Rule(lambda entry: _shape(entry.get("square_avg")), _rmsprop)
    if "nesterov" in keys:
        return Rule(lambda entry: _shape(entry.get("momentum_buffer")), _sgd, stateless=True)
    if "betas" in keys and kept <= ADAM:
        return Rule(lambda entry: _shape(entry.get("exp_avg_sq")), _adam)
    what = ", ".join(sorted(kept) or sorted(keys - {"params"}))
    raise Unusable(f"is neither SGD nor Adam, nor another that is known (it keeps {what})")


# what of its groups or entries tells an optimizer whose last moments do not give its steps
NO_ROOT = {
    "ns_steps": "Muon",
    "lr_decay": "Adagrad",
    "rho": "Adadelta",
    "etas": "Rprop",
    "lambd": "ASGD",
    "history_size": "L-BFGS",
    "weight_lr_power": "schedule-free",
    "projector": "GaLore",
    "precondition_frequency": "SOAP",
    "hessian": "Sophia",
    "exp_avg_diff": "Adan",
    "exp_avg_slow": "AdEMAMix",
    "unorm_vec": "LAMB or LARS",
    "trust_clip": "LAMB",
    "clamp_value": "LAMB",
}
ADAM = {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "mu_product", "compensation"}


def unwrapped(entry: Entry) -> Entry:
    """An entry with what bitsandbytes wraps for sharded trainings."""
    inner = entry.get("__bnb_optimizer_quant_state__")
    return {**entry, **inner} if isinstance(inner, Mapping) else entry


def _shape(moment: Tensor | None) -> torch.Size | None:
    return None if moment is None else moment.shape


def steps_of(entry: Entry, group: Group) -> float:
    """Steps that a parameter took; NaN where they were not counted."""
    return float(entry.get("step", group.get("step", math.nan)))  # apex counts by group


def _adam(entry: Entry, group: Group, weight: Tensor) -> Tensor:
    """√V̂ + ε, V̂ corrected for its start at zero."""
    moment = entry.get("max_exp_avg_sq")
    correction = 1 - group["betas"][1] ** steps_of(entry, group)
    return ((entry["exp_avg_sq"] if moment is None else moment).float() / correction).sqrt() + group["eps"]


def _sgd(entry: Entry, group: Group, weight: Tensor) -> Tensor:
    momentum, dampening = float(group.get("momentum", 0)), float(group.get("dampening", 0))
    if not 0 <= momentum < 1 or (momentum and not dampening < 1):
        raise Unusable(f"is SGD of momentum {momentum:g} and dampening {dampening:g}, whose steps have no limit")
    return torch.tensor((1 - momentum) / (1 - dampening if momentum else 1)).expand(weight.shape)


def _rmsprop(entry: Entry, group: Group, weight: Tensor) -> Tensor:
    V = entry["square_avg"].float()
    if group["centered"]:
        V = (V - entry["grad_avg"].float() ** 2).clamp(min=0)
    return (V.sqrt() + group["eps"]) * (1 - float(group.get("momentum", 0)))


def _factored_shape(entry: Entry) -> torch.Size | None:
    if "row_var" in entry:
        return torch.Size([*entry["row_var"].shape[:-1], entry["col_var"].shape[-1]])
    if "exp_avg_sq_row" in entry:
        return torch.Size([*entry["exp_avg_sq_row"].shape, entry["exp_avg_sq_col"].shape[-1]])
    return _shape(entry.get("variance", entry.get("exp_avg_sq")))


def _adafactor(entry: Entry, group: Group, weight: Tensor) -> Tensor:
    """√V̂, V̂ = row ⊗ col / mean(row), by the size of the weight where steps are relative to it."""
    if group["lr"] is None or group.get("relative_step"):
        raise Unusable("is Adafactor with relative steps, which have no learning rates to sum")
    torchs = "beta2_decay" in group
    if torchs and float(group.get("initial_lr", group["lr"])) ** 2 * steps_of(entry, group) > 1:
        raise Unusable("is Adafactor at a learning rate above 1/√step, which then took its place")
    if "row_var" in entry:
        row, column = entry["row_var"].float(), entry["col_var"].float()
        V = row @ column / row.mean(-2, keepdim=True)
    elif "exp_avg_sq_row" in entry:
        row, column = entry["exp_avg_sq_row"].float(), entry["exp_avg_sq_col"].float()
        V = row[..., None] * column[..., None, :] / row.mean(-1)[..., None, None]
    else:
        V = entry["variance" if torchs else "exp_avg_sq"].float()
    relative = torchs or group.get("scale_parameter")
    size = max(group["eps"][1], float(weight.detach().float().square().mean().sqrt())) if relative else 1.0
    return V.sqrt() / size


def _bitsandbytes(group: Group, kept: set[str]) -> Rule:
    """bitsandbytes names no optimizer, but its groups tell."""
    two, (first, second, *more) = "state2" in kept, group["betas"]
    shape: Callable[[Entry], torch.Size | None] = lambda entry: _shape(entry.get("state2" if two else "state1"))  # noqa: E731
    if two and not more and not group.get("alpha"):
        return Rule(shape, _bitsandbytes_adam)
    if not two and second == 0 and first > 0:
        return Rule(shape, _bitsandbytes_rmsprop if group["eps"] else _bitsandbytes_sgd, stateless=not group["eps"])
    name = "AdEMAMix" if two else "Adagrad" if not first else "Lion"
    raise Unusable(f"is {name}, and its state does not tell the scale of its steps")


def _bitsandbytes_adam(entry: Entry, group: Group, weight: Tensor) -> Tensor:
    return _adam({"exp_avg_sq": dequantised(entry, 2), "step": entry.get("step")}, group, weight)


def _bitsandbytes_rmsprop(entry: Entry, group: Group, weight: Tensor) -> Tensor:
    return dequantised(entry, 1).sqrt() + group["eps"]


def _bitsandbytes_sgd(entry: Entry, group: Group, weight: Tensor) -> Tensor:
    return _sgd(entry, {"momentum": group["betas"][0]}, weight)


def dequantised(entry: Entry, which: int) -> Tensor:
    """A moment of bitsandbytes: each block of consecutive elements is a code of 256 values times its largest."""
    codes = entry[f"state{which}"]
    if codes.dtype != torch.uint8:
        return codes.float()  # of few elements, or an optimizer of 32 bits
    largest = entry.get(f"absmax{which}", entry.get(f"max{which}"))
    values = entry[f"qmap{which}"].float()[codes.flatten().long()]
    blocks, size = largest.numel(), len(values)
    length = next((2**bits for bits in range(6, 14) if blocks > 1 and math.ceil(size / 2**bits) == blocks), size)
    if math.ceil(size / length) != blocks:
        raise Unusable(f"is one of 8 bits with {size} moments in {blocks} blocks, of a length that is not known")
    return (values * largest.float().repeat_interleave(length)[:size]).view(codes.shape)
