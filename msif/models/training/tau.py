"""What a stage's own training says of its natural scale: τ, the learning rate summed over steps (docs/method.md)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from msif.models.adapted import Adapted
from msif.models.adapters import is_adapter
from msif.models.blocks import TrackedModule, as_matrix, stored
from msif.models.training.files import (
    OPTIMIZER,
    STATE,
    SUM,
    TrainingUnknown,
    no_optimizer,
    optimizer_state,
    trainer_state,
)
from msif.models.training.rates import learning_rates_summed
from msif.models.training.saved import SavedOptimizer

log = logging.getLogger(__name__)


def natural_tau(
    folder: str | Path,
    model: nn.Module,
    tracked: Sequence[TrackedModule],
    learning_rate_sum: float | None = None,
    since: str | Path | None = None,
) -> dict[str, Tensor]:
    """τ of every block of a stage: module name -> (nb,), in units of 1/curvature; 1/τ is the natural damping.

    An optimizer's step is η/root: under Adam √V + ε, under SGD 1 − momentum. A parameter's own damping is root/Σ η, and
    a block's 1/τ is the mean of these dampings, so τ = Σ η / mean(root). The mean of the times 1/root would be carried
    by the few parameters that see next to no gradient, and 1/τ would be as good as zero (docs/digits.md).

    Args:
        folder: of ``optimizer.pt``, and of ``trainer_state.json`` and ``scheduler.pt``, from which Σ η is taken.
        learning_rate_sum: Σ η of the first group of parameters that learns, where it is known. With it and without
            ``optimizer.pt`` the model is taken to be trained by SGD.
        since: folder of an earlier checkpoint of the same training, from which on its steps are counted.

    Raises:
        TrainingUnknown: an ``MsifError`` that names what is missing, or what in the files cannot be used.
    """
    folder = Path(folder).expanduser()
    if is_adapter(folder):
        raise TrainingUnknown(
            f"{folder} is an adapter, and how its own parameters were trained says nothing of the weights that it is "
            "merged into"
        )
    before = 0.0
    if since is not None:
        since = Path(since).expanduser()
        state = optimizer_state(since)
        if state is None:
            raise no_optimizer(since)
        before = _summed(SavedOptimizer(since, state, model))
    return _natural_tau(folder, model, tracked, learning_rate_sum, before)


def adapter_tau(folder: str | Path, adapted: Adapted, learning_rate_sum: float | None = None) -> dict[str, Tensor]:
    """τ of the parameters of an adapter: "PATH.lora_A" and "PATH.lora_B" -> (1,); see ``natural_tau``.

    Raises:
        TrainingUnknown: as ``natural_tau``; modules that were trained whole beside the adapter.
    """
    folder = Path(folder).expanduser()
    if adapted.whole:
        raise TrainingUnknown(f"in {folder} '{min(adapted.whole)}' was trained whole beside the adapter")
    return _natural_tau(folder, *adapted.parameters, learning_rate_sum)


def _natural_tau(
    folder: Path,
    model: nn.Module,
    tracked: Sequence[TrackedModule],
    learning_rate_sum: float | None,
    before: float = 0.0,
) -> dict[str, Tensor]:
    try:
        state = optimizer_state(folder)
        if state is not None:
            return _taus(SavedOptimizer(folder, state, model), tracked, learning_rate_sum, before)
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
        raise TrainingUnknown(f"the learning rates of {folder} sum to {total:g}", f"{SUM} above 0")
    return total


def _frozen(what: str, folder: Path) -> TrainingUnknown:
    return TrainingUnknown(
        f"{what} was frozen in the training of {folder}, and what does not move has τ = 0 and no finite α",
        "leave out with --modules what was frozen",
    )


def _summed(saved: SavedOptimizer) -> float:
    """Σ η of the first group that learns."""
    return learning_rates_summed(saved.folder, saved.groups, saved.shares.index(1.0))


def _taus(
    saved: SavedOptimizer, tracked: Sequence[TrackedModule], given: float | None, before: float
) -> dict[str, Tensor]:
    """See ``natural_tau``; of steps after those whose rates sum to ``before``."""
    weights = [stored(saved.model, module)[0] for module in tracked]
    names = [saved.names[id(weight)] for weight in weights]
    places = saved.places(names)
    total = _above_zero(saved.folder, (_summed(saved) if given is None else given) - before)
    result = {}
    for module, weight, name in zip(tracked, weights, names, strict=True):
        place = places[name]
        share = 0.0 if place is None else saved.shares[place.group]
        if place is None or share == 0:
            raise _frozen(name, saved.folder)
        root = as_matrix(saved.model, module, saved.root(name, place, weight))
        result[module.name] = (total * share / _means(saved.folder, name, root, module)).float()
    return result


def _means(folder: Path, name: str, root: Tensor, module: TrackedModule) -> Tensor:
    """Each block's mean of its rows of the root, (nb,)."""
    means = root.unflatten(0, (len(module.blocks), -1)).mean(dim=(1, 2), dtype=torch.float64)
    if not (means.isfinite() & (means > 0)).all():
        raise TrainingUnknown(
            f"the second moments of {name} in {folder / OPTIMIZER} give no scale (NaN, infinity, or zero with ε = 0)"
        )
    return means
