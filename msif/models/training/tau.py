"""What a stage's own training says of its natural scale: τ, the learning rate summed over steps (docs/method.md)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from msif.models.adapters import is_adapter
from msif.models.blocks import TrackedModule, as_matrix, stored
from msif.models.training.files import (
    NUMBERS,
    OPTIMIZER,
    STATE,
    SUM_OR_NUMBERS,
    TrainingUnknown,
    no_optimizer,
    optimizer_state,
    trainer_state,
)
from msif.models.training.optimizers import Unusable, rule_of, steps_of, unwrapped
from msif.models.training.order import Misfit, Numbered, Placed, Unclear, match_parameters
from msif.models.training.rates import group_shares, learning_rates_summed

log = logging.getLogger(__name__)


def natural_tau(
    folder: str | Path, model: nn.Module, tracked: Sequence[TrackedModule], learning_rate_sum: float | None = None
) -> dict[str, Tensor]:
    """τ of every block of a stage: module name -> (nb,), in units of 1/curvature; 1/τ is the natural damping.

    An optimizer's step is η/root: under Adam √V + ε, under SGD 1 − momentum. A parameter's own damping is root/Σ η, and
    a block's 1/τ is the mean of these dampings, so τ = Σ η / mean(root). The mean of the times 1/root would be carried
    by the few parameters that see next to no gradient, and 1/τ would be as good as zero (docs/digits.md).

    Args:
        folder: of ``optimizer.pt``, and of ``trainer_state.json`` and ``scheduler.pt``, from which Σ η is taken.
        learning_rate_sum: Σ η of the first group of parameters that learns, where it is known. With it and without
            ``optimizer.pt`` the model is taken to be trained by SGD.

    Raises:
        TrainingUnknown: an ``MsifError`` that names what is missing, or what in the files cannot be used.
    """
    folder = Path(folder).expanduser()
    try:
        if is_adapter(folder):
            raise TrainingUnknown(
                f"{folder} is an adapter, and how its own parameters were trained says nothing of the weights that it "
                "is merged into"
            )
        state = optimizer_state(folder)
        if state is not None:
            return _Optimizer(folder, state, model).tau(tracked, learning_rate_sum)
        if learning_rate_sum is None:
            trainer_state(folder)
            raise no_optimizer(folder)
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise TrainingUnknown(f"what a training left in {folder} is not as a Trainer writes it ({what})") from error
    log.info("no %s beside %s: taken to be trained by SGD, τ = %g", OPTIMIZER, folder, learning_rate_sum)
    total = _above_zero(folder, learning_rate_sum)
    return {module.name: torch.full((len(module.blocks),), total) for module in tracked}


def training_is_known(folder: str | Path) -> bool:
    """Whether the files that ``natural_tau`` cannot do without are beside a model; not whether they can be used."""
    folder = Path(folder).expanduser()
    return (folder / STATE).is_file() and (folder / OPTIMIZER).is_file()


def _above_zero(folder: Path, total: float) -> float:
    if not total > 0:
        raise TrainingUnknown(f"the learning rates of {folder} sum to {total:g}", f"{SUM_OR_NUMBERS}, above 0")
    return total


def _frozen(what: str, folder: Path) -> TrainingUnknown:
    return TrainingUnknown(
        f"{what} was frozen in the training of {folder}, and what does not move has τ = 0 and no finite α",
        f"leave out with --modules what was frozen, or {NUMBERS}",
    )


class _Optimizer:
    """The saved state of an optimizer, with the model that it trained."""

    def __init__(self, folder: Path, state: Mapping[str, Any], model: nn.Module) -> None:
        self.folder, self.model, self.groups = folder, model, state["param_groups"]
        self.entries = {number: unwrapped(entry) for number, entry in state["state"].items()}
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        try:
            self.rule = rule_of(self.groups, list(self.entries.values()))
            self.shares = group_shares(self.groups)
        except Unusable as error:
            raise self._unusable(error) from error

    def tau(self, tracked: Sequence[TrackedModule], given: float | None) -> dict[str, Tensor]:
        """See ``natural_tau``."""
        weights = [stored(self.model, module)[0] for module in tracked]
        names = [self.names[id(weight)] for weight in weights]
        places = self._places(names)
        first = self.shares.index(1.0)
        total = _above_zero(
            self.folder, learning_rates_summed(self.folder, self.groups, first) if given is None else given
        )
        result = {}
        for module, weight, name in zip(tracked, weights, names, strict=True):
            place = places[name]
            share = 0.0 if place is None else self.shares[place.group]
            if place is None or share == 0:
                raise _frozen(name, self.folder)
            root = self._root(name, place, weight)
            means = self._means(name, as_matrix(self.model, module, root), module)
            result[module.name] = (total * share / means).float()
        return result

    def _places(self, names: Sequence[str]) -> Placed:
        """What the optimizer has of each of these parameters."""
        groups = [
            [self._numbered(place, group, index) for index in range(len(group["params"]))]
            for place, group in enumerate(self.groups)
        ]
        count = sum(map(len, groups))
        rules = [(group.get("momentum"), group.get("dampening")) for group in self.groups]
        alike = len(set(zip(self.shares, rules, strict=True))) == 1
        if self.rule.stateless and alike and count in (0, len(self.names)):
            return dict.fromkeys(names, Numbered(0, None, None))  # all are trained, and all in the same way
        if not self.rule.stateless and not any(one.shape for group in groups for one in group):
            raise self._misfit("no second moment for any parameter")
        try:
            return match_parameters(groups, self.model, names)
        except Misfit as error:
            raise self._misfit(str(error)) from error
        except Unclear as error:
            raise TrainingUnknown(
                f"{OPTIMIZER} in {self.folder} has {error}, and by their shapes it cannot be told which they are"
            ) from error

    def _numbered(self, place: int, group: Mapping[str, Any], index: int) -> Numbered:
        number, names = group["params"][index], group.get("param_names")
        name = names[index] if names else number if isinstance(number, str) else None
        return Numbered(place, number, self.rule.shape(self.entries.get(number, {})), name)

    def _root(self, name: str, place: Numbered, weight: nn.Parameter) -> Tensor:
        group, entry = self.groups[place.group], self.entries.get(place.number, {})
        if not self.rule.stateless and place.shape is None:
            raise self._misfit(f"no second moment for {name}")
        if steps_of(entry, group) <= 0:
            raise self._misfit(f"no step was taken for {name}")
        try:
            return self.rule.root(entry, group, weight)
        except Unusable as error:
            raise self._unusable(error) from error

    def _means(self, name: str, root: Tensor, module: TrackedModule) -> Tensor:
        """Each block's mean of its rows of the root, (nb,)."""
        means = root.unflatten(0, (len(module.blocks), -1)).mean(dim=(1, 2), dtype=torch.float64)
        if not (means.isfinite() & (means > 0)).all():
            raise TrainingUnknown(
                f"the second moments of {name} in {self.folder / OPTIMIZER} give no scale (NaN, infinity, or zero with "
                "ε = 0)"
            )
        return means

    def _unusable(self, error: Unusable) -> TrainingUnknown:
        return TrainingUnknown(f"the optimizer of {OPTIMIZER} in {self.folder} {error}")

    def _misfit(self, detail: str) -> TrainingUnknown:
        return TrainingUnknown(
            f"{OPTIMIZER} in {self.folder} does not fit the model ({detail})",
            f"give the one of this model, or {NUMBERS.removeprefix('give ')}",
        )
