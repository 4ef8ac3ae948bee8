"""Modules that read the same input share A, its eigenvectors, and everything computed from x alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from msif.errors import MsifError
from msif.models.blocks import TrackedModule
from msif.models.capture import Capture, Consumer
from msif.models.devices import check_float64
from msif.models.objectives import Objective

log = logging.getLogger(__name__)


def find_input_groups(
    model: nn.Module, tracked: Sequence[TrackedModule], objective: Objective, batch: Any
) -> dict[str, str]:
    """Module name -> name of the first module that reads the very same tensor (with or without a bias, like it).

    Found by one forward pass, so that it holds for any architecture: q/k/v and gate/up projections share, and so do
    attention and MLP maps of a parallel block behind one norm. A module that runs several times shares with those that
    it shares with each time. A parameter that is no linear map is alone, and one that does not run is left out.
    """
    return probe_inputs(model, tracked, objective, batch)[0]


def probe_inputs(
    model: nn.Module, tracked: Sequence[TrackedModule], objective: Objective, batch: Any
) -> tuple[dict[str, str], int]:
    """The same, and about how many numbers the outputs of the batch are; a part of it tells, where it has ``few``."""
    few = batch.few() if hasattr(batch, "few") else batch
    probe = _InputProbe()
    with Capture(model, tracked, probe) as capture:
        outputs = capture.run(objective, few, [])
        ran = capture.ran
    groups = {module.name: probe.leader(module.name) for module in tracked if module.name in ran}
    return groups, outputs.numel() * objective.live(batch).numel() // objective.live(few).numel()


class _InputProbe(Consumer):
    def __init__(self) -> None:
        self._leaders: dict[str, list[str]] = {}
        self._seen: dict[tuple[object, ...], tuple[str, Tensor]] = {}

    def leader(self, name: str) -> str:
        leaders = self._leaders.get(name, [name])
        first = leaders[0]
        always = set(leaders) == {first} and len(leaders) == len(self._leaders.get(first, leaders))
        return first if always else name

    def right(self, module: TrackedModule, right: Tensor) -> None:
        key = (*_identity(right), module.bias, module.is_map, len(module.uses))
        # it is kept, so that its memory is not given to another input before the pass ends
        leader, _ = self._seen.setdefault(key, (module.name, right))
        self._leaders.setdefault(module.name, []).append(leader if module.is_map else module.name)

    def end(self, batch: Any) -> None:
        self._seen.clear()


def _identity(x: Tensor) -> tuple[object, ...]:
    # without numbers there is no address, but a storage
    place = (x.untyped_storage()._cdata, x.storage_offset()) if x.is_meta else x.data_ptr()
    return place, x.shape, x.stride(), x._version


class SharedInputs:
    """Computes a function of x once a group and batch, and gives its result to every member.

    ``groups`` maps module names to leaders, as ``find_input_groups`` returns it.
    """

    def __init__(self, groups: Mapping[str, str]) -> None:
        self.groups = groups
        self._members = {leader: list(groups.values()).count(leader) for leader in set(groups.values())}
        self._results: dict[tuple[object, ...], tuple[TrackedModule, Tensor, Any, int]] = {}

    def get(self, module: TrackedModule, x: Tensor, compute: Callable[[Tensor], Any]) -> Any:
        leader = self.groups[module.name]
        if self._members[leader] == 1:
            return compute(x)
        key = (leader, *_identity(x))  # a group may read several inputs in turn
        if key not in self._results:
            self._results[key] = (module, x, compute(x), self._members[leader])
        reader, first, result, waiting = self._results.pop(key)
        if waiting > 1:
            # the input is kept, so that its memory is not given to another one before all members have read it
            self._results[key] = (reader, first, result, waiting - 1)
        return result

    def check(self) -> None:
        """After a batch: every result has gone to all members of its group.

        Raises:
            MsifError: some members read an input that the others did not.
        """
        readers, self._results = [reader.name for reader, *_ in self._results.values()], {}
        if not readers:
            return
        group = [name for name, leader in self.groups.items() if leader == self.groups[readers[0]]]
        other = next(name for name in [*readers[1:], *group] if name in group and name != readers[0])
        raise MsifError(
            f"modules '{readers[0]}' and '{other}' read one input in the first batch and two different ones now: "
            "leave one of them out with --modules."
        )

    def clear(self) -> None:
        self._results.clear()


def those_that_run(tracked: Sequence[TrackedModule], groups: Mapping[str, str]) -> list[TrackedModule]:
    """Without those that took no part in the forward pass, which are named in a warning."""
    idle = [module.name for module in tracked if module.name not in groups]
    if idle:
        log.warning("Not tracked: %s (their modules do not run in the forward pass)", ", ".join(idle))
    return [module for module in tracked if module.name in groups]


def device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where the model lives, and the dtype to compute in: float32, or float64 for a float64 model.

    Raises:
        MsifError: the model is spread over several devices, or on one that has no float64.
    """
    parameter = next(model.parameters())
    devices = {str(other.device) for other in model.parameters()}
    if len(devices) > 1:
        raise MsifError(f"the model is spread over {', '.join(sorted(devices))}: load it onto one device.")
    check_float64(parameter.device)
    return parameter.device, torch.float64 if parameter.dtype == torch.float64 else torch.float32
