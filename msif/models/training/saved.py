"""The saved state of an optimizer, with the model that it trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from msif.models.training.files import OPTIMIZER, TrainingUnknown
from msif.models.training.optimizers import Entry, Group, Unusable, rule_of, steps_of, unwrapped
from msif.models.training.order import Misfit, Numbered, Placed, Unclear, match_parameters
from msif.models.training.rates import group_shares


class SavedOptimizer:
    """The saved state of an optimizer, with the model that it trained."""

    def __init__(self, folder: Path, state: Mapping[str, Any], model: nn.Module) -> None:
        self.folder, self.model, self.groups = folder, model, state["param_groups"]
        self.entries = {number: unwrapped(entry) for number, entry in state["state"].items()}
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        try:
            self.rule = rule_of(self.groups, list(self.entries.values()))
        except Unusable as error:
            raise self._unusable(error) from error

    @cached_property
    def shares(self) -> list[float]:
        """Of each group's learning rate in the first's."""
        try:
            return group_shares(self.groups)
        except Unusable as error:
            raise self._unusable(error) from error

    def places(self, names: Sequence[str]) -> Placed:
        """What the optimizer has of each of these parameters; without numbers where all are trained in the same way."""
        count = sum(len(group["params"]) for group in self.groups)
        if self.rule.stateless and self._alike and count in (0, len(self.names)):
            return dict.fromkeys(names, Numbered(0, None, None))
        return self.matched(names)

    def matched(self, names: Sequence[str]) -> Placed:
        """What number each of these parameters has.

        Raises:
            TrainingUnknown: it cannot have trained the model, or it cannot be told.
        """
        groups = [
            [self._numbered(place, group, index) for index in range(len(group["params"]))]
            for place, group in enumerate(self.groups)
        ]
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

    @property
    def _alike(self) -> bool:
        """Whether all groups take steps of one rule."""
        rules = [(group.get("momentum"), group.get("dampening")) for group in self.groups]
        return len(set(zip(self.shares, rules, strict=True))) == 1

    def _numbered(self, place: int, group: Mapping[str, Any], index: int) -> Numbered:
        number, names = group["params"][index], group.get("param_names")
        name = names[index] if names else number if isinstance(number, str) else None
        return Numbered(place, number, self.rule.shape(self.entries.get(number, {})), name)

    def root(self, name: str, place: Numbered, weight: nn.Parameter) -> Tensor:
        """Of a parameter's steps, see ``Rule``."""
        return self.read(name, place, lambda entry, group: self.rule.root(entry, group, weight))

    def read(self, name: str, place: Numbered, read: Callable[[Entry, Group], Any]) -> Any:
        """What a function reads of a parameter's state.

        Raises:
            TrainingUnknown: there is no state of it, or the function cannot use it.
        """
        group, entry = self.groups[place.group], self.entries.get(place.number, {})
        if not self.rule.stateless and place.shape is None:
            raise self._misfit(f"no second moment for {name}")
        if steps_of(entry, group) <= 0:
            raise self._misfit(f"no step was taken for {name}")
        try:
            return read(entry, group)
        except Unusable as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Unusable) -> TrainingUnknown:
        return TrainingUnknown(f"the optimizer of {OPTIMIZER} in {self.folder} {error}")

    def _misfit(self, detail: str) -> TrainingUnknown:
        return TrainingUnknown(
            f"{OPTIMIZER} in {self.folder} does not fit the model ({detail})",
            "give the one of this model",
        )
