"""From an adapter's parts and its stage's data to the hop through it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from msif.attribution.gradients import Side
from msif.curvature.adapter_hop import AdapterHop, Pull
from msif.curvature.factors import Factors
from msif.curvature.mean_gradient import mean_gradient
from msif.errors import MsifError
from msif.models.adapted import SIDES, Adapted


def build_hop(
    side: Side,
    factors: Factors,
    adapted: Adapted,
    alpha: float | Mapping[str, Tensor] | None,
    batches: Iterable[Any] | None,
) -> AdapterHop:
    """The hop through an adapter, over the modules of ``side``; the pass over the data is made when first applied.

    Args:
        alpha: its pull; a number, or one for each of "PATH.lora_A" and "PATH.lora_B".
        batches: the stage's own training data, of which Γ is taken.

    Raises:
        MsifError: no data, no α, or an adapter that is not LoRA alone.
    """
    adapted = adapted.checked()
    if batches is None:
        raise MsifError("the hop of an adapter takes the mean gradient of its own training data: give batches of it.")
    if not alpha:
        raise MsifError("the hop of an adapter needs its pull to where it started: give --alpha X, above 0.")
    modules = [module for module in side.tracked if module.path in adapted.maps]
    whole = [module.name for module in side.tracked if module.path in adapted.whole]
    pull: Pull
    if isinstance(alpha, Mapping):
        pull = {module.name: _pair(alpha, module.path) for module in modules}
    else:
        pull = float(alpha)
    maps = {module.name: adapted.maps[module.path] for module in modules}
    return AdapterHop(factors, maps, lambda: mean_gradient(side.model, modules, side.objective, batches), pull, whole)


def _pair(alpha: Mapping[str, Tensor], path: str) -> tuple[float, float]:
    a, b = (float(alpha[f"{path}.{side}"]) for side in SIDES)
    return a, b
