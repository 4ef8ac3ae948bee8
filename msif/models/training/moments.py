"""Second moments of gradients, as optimizers keep them: whole (Adam), or as rows ⊗ columns (Adafactor)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from msif.errors import MsifError
from msif.models.blocks import TrackedModule, as_matrix, is_stored_transposed, stored
from msif.models.training.files import OPTIMIZER, TrainingUnknown, optimizer_state
from msif.models.training.optimizers import Entry, Group, Unusable, dequantised, steps_of
from msif.models.training.saved import SavedOptimizer

Whole = Tensor
Factored = tuple[Tensor, Tensor]
"""(rows, columns), whose outer product is V."""
V = Whole | Factored


@dataclass(frozen=True)
class SecondMoments:
    """Of one parameter W̄ (d_out, d_in + bias).

    Attributes:
        weight: (d_out, d_in), or ((d_out,), (d_in,)), whose outer product it is.
        bias: (d_out,), of the bias column.
    """

    weight: V
    bias: Tensor | None = None


def second_moments(source: str | Path, model: nn.Module, tracked: Sequence[TrackedModule]) -> dict[str, SecondMoments]:
    """Module name -> V of its gradient, from the state of the optimizer that trained a model.

    Args:
        source: a folder with ``optimizer.pt``, as a Trainer leaves it (Adam and its kin, RMSprop, Adafactor; read as
            weights only), or a safetensors file of V by the names of the model's parameters: NAME, or NAME.row and
            NAME.column, whose outer product it is.

    Raises:
        TrainingUnknown: an ``MsifError`` that names what is missing, does not fit the model, or cannot be used.
    """
    try:
        return _moments(Path(source).expanduser(), model, tracked)
    except TrainingUnknown as error:
        raise TrainingUnknown(error.reason, INSTEAD) from error


def _moments(source: Path, model: nn.Module, tracked: Sequence[TrackedModule]) -> dict[str, SecondMoments]:
    if source.suffix == ".safetensors":
        of = _from_tensors(source)
    else:
        state = optimizer_state(source)
        if state is None:
            raise TrainingUnknown(f"there is no {OPTIMIZER} in {source}", INSTEAD)
        of = _from_optimizer(SavedOptimizer(source, state, model))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for module in tracked:
        weight, bias = stored(model, module)
        moments = _as_matrix(model, module, of(names[id(weight)], weight))
        column = None if bias is None else _vector(of(names[id(bias)], bias))
        found[module.name] = SecondMoments(moments, column)
        for part in (*(moments if isinstance(moments, tuple) else (moments,)), *([] if column is None else [column])):
            if not bool((part.isfinite() & (part >= 0)).all()):
                raise TrainingUnknown(
                    f"the second moments of {module.name} in {source} are not all above zero", INSTEAD
                )
    return found


INSTEAD = "give --second-moments estimate, or none"


def _as_matrix(model: nn.Module, module: TrackedModule, found: V) -> V:
    """In the orientation of W̄."""
    if isinstance(found, tuple):
        return found[::-1] if is_stored_transposed(model, module) else found
    return as_matrix(model, module, found)


def _vector(found: V) -> Tensor:
    assert isinstance(found, Tensor)
    return found


Read = Callable[[str, nn.Parameter], V]


def _from_optimizer(saved: SavedOptimizer) -> Read:
    places: dict[str, Any] = {}

    def read(name: str, parameter: nn.Parameter) -> V:
        if not places:
            places.update(saved.places(list(saved.names.values())))
        place = places[name]
        if place is None:
            raise TrainingUnknown(
                f"{name} was frozen in the training of {saved.folder}, so {OPTIMIZER} has no second moment of it",
                f"leave it out with --modules, or {INSTEAD}",
            )
        return saved.read(name, place, moment_of)

    return read


def moment_of(entry: Entry, group: Group) -> V:
    """V̂ as an optimizer has it, corrected for its start at zero where its steps are.

    Raises:
        Unusable: it keeps none.
    """
    if "row_var" in entry:  # torch's Adafactor
        row, column = entry["row_var"].float().flatten(), entry["col_var"].float().flatten()
        return row / row.mean(), column
    if "exp_avg_sq_row" in entry:
        row, column = entry["exp_avg_sq_row"].float(), entry["exp_avg_sq_col"].float()
        return row / row.mean(), column
    if "state2" in entry:
        return dequantised(entry, 2) / _correction(entry, group)
    if "exp_avg_sq" in entry and "betas" in group:
        largest = entry.get("max_exp_avg_sq")
        return (entry["exp_avg_sq"] if largest is None else largest).float() / _correction(entry, group)
    for name in ("exp_avg_sq", "variance", "square_avg"):
        if name in entry:
            return entry[name].float()
    raise Unusable("keeps no second moments")


def _correction(entry: Entry, group: Group) -> float:
    return 1 - group["betas"][1] ** steps_of(entry, group)


def _from_tensors(path: Path) -> Read:
    if not path.is_file():
        raise MsifError(f"there is no file of second moments at {path}: check the path.")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise MsifError(f"{path} cannot be read ({error}): write the second moments again.") from error

    def read(name: str, parameter: nn.Parameter) -> V:
        found: V
        if name in tensors:
            found, size = tensors[name].float(), tuple(tensors[name].shape)
        elif f"{name}.row" in tensors and f"{name}.column" in tensors:
            row, column = tensors[f"{name}.row"].float(), tensors[f"{name}.column"].float()
            found, size = (row, column), tuple(row.shape + column.shape)
        else:
            raise TrainingUnknown(f"{path} has no second moments of {name}", INSTEAD)
        if size != tuple(parameter.shape):
            raise TrainingUnknown(
                f"{path} has second moments of shape {size} for {name}, whose shape is {tuple(parameter.shape)}",
                INSTEAD,
            )
        return found

    return read


def to_tensors(
    model: nn.Module, tracked: Sequence[TrackedModule], moments: Mapping[str, SecondMoments]
) -> dict[str, Tensor]:
    """As such a file holds them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    for module in tracked:
        weight, bias = stored(model, module)
        name, own = names[id(weight)], moments[module.name]
        turned = is_stored_transposed(model, module)
        if isinstance(own.weight, tuple):
            row, column = own.weight[::-1] if turned else own.weight
            tensors |= {f"{name}.row": row, f"{name}.column": column}
        else:
            tensors[name] = (own.weight.T if turned else own.weight).reshape(weight.shape).contiguous()
        if bias is not None and own.bias is not None:
            tensors[names[id(bias)]] = own.bias
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def factored(full: Tensor) -> Factored:
    """The rank-one matrix with the same sums of rows and columns (Shazeer and Stern 2018, arXiv 1804.04235, eq. 4)."""
    rows = full.sum(1)
    return rows / rows.mean().clamp(min=torch.finfo(full.dtype).tiny), full.mean(0)
