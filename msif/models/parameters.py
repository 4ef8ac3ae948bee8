"""Every parameter of a model with its uses: found by what modules do, not by their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from msif.models.blocks import Basis, Block, Kind, TrackedModule, Use, holding, is_linear, is_transposed, linear_shape
from msif.models.capture import frozen
from msif.models.uses import normalised

Owner = tuple[str, nn.Module, str]
"""(path, module, key): where a parameter hangs."""


def find_parameters(model: nn.Module) -> tuple[list[TrackedModule], dict[str, str]]:
    """All that can be tracked, in the model's order, each as one block; and why the other parameters cannot.

    A weight goes by its module's name, with its bias as a last column; a norm's scale and shift, and a bias whose
    weight is shared without it, by the parameter's own. A weight of several modules goes by the first.

    Returns:
        The tracked, and full name -> reason of the others.
    """
    owners = _owners(model)
    with frozen(model):  # in training mode some modules change when they are asked
        kinds = {path: _kinds(module) for path, module in model.named_modules() if module._parameters}
    columns = _columns(owners, kinds)
    unembedding = _output_embedding(model)
    found: list[TrackedModule] = []
    left: dict[str, str] = {}
    for group in owners:
        paths = tuple(path for path, _, _ in group)
        if paths in columns and group[0][2] == "bias":
            continue
        why = _refusal(group, kinds)
        if why:
            left[_join(group[0][0], group[0][2])] = why
            continue
        uses = tuple(Use(path, kinds[path][key], key) for path, _, key in group)
        found.append(_tracked(model, group[0], uses, paths in columns and group[0][2] == "weight", unembedding))
    return found, left


def short_name(model: nn.Module, path: str) -> str:
    """The path after the base-model prefix, the same for a bare base model and under any head."""
    if not isinstance(model, PreTrainedModel) or model.base_model is model:
        return path
    return path.removeprefix(f"{model.base_model_prefix}.")


def _owners(model: nn.Module) -> list[list[Owner]]:
    """For each parameter all modules that hold it, in the model's order."""
    result: dict[int, list[Owner]] = {}
    for path, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                result.setdefault(id(parameter), []).append((path, module, key))
    return list(result.values())


def _columns(owners: Sequence[Sequence[Owner]], kinds: Mapping[str, Mapping[str, Kind]]) -> set[tuple[str, ...]]:
    """The paths of linear maps that share both their weight and their bias, mostly one: there the bias is a column."""
    paths: dict[str, set[tuple[str, ...]]] = {"weight": set(), "bias": set()}
    for group in owners:
        keys = {key for _, _, key in group}
        if keys < paths.keys() and all(kinds[path].get("weight") == "linear" for path, _, _ in group):
            paths[keys.pop()].add(tuple(path for path, _, _ in group))
    return paths["weight"] & paths["bias"]


def _refusal(group: Sequence[Owner], kinds: Mapping[str, Mapping[str, Kind]]) -> str:
    """Why a parameter cannot be tracked, or nothing."""
    for path, module, key in group:
        if key not in kinds[path]:
            return f"{type(module).__name__} is no linear map, lookup or norm"
    found = {kinds[path][key] for path, _, key in group}
    if len(found) > 1 and (found != {"linear", "lookup"} or any(is_transposed(module) for _, module, _ in group)):
        return f"it is used in several ways ({', '.join(sorted(found))})"
    return ""


def _tracked(
    model: nn.Module, first: Owner, uses: tuple[Use, ...], column: bool, unembedding: nn.Module | None
) -> TrackedModule:
    path, module, key = first
    kind = uses[0].kind
    parameter: Any = module._parameters[key]
    row: Basis = "eigenvectors"
    columns: Basis = "eigenvectors"
    if kind in ("linear", "lookup"):
        rows, d_in = linear_shape(module)
        # one-hot rows have a diagonal second moment; on the vocabulary's side of an unembedding it is a choice
        if any(use.kind == "lookup" or model.get_submodule(use.path) is unembedding for use in uses):
            row = "identity"
        name = path
    else:
        rows, d_in, row, columns, name = 1, parameter.numel(), "identity", "identity", _join(path, key)
    blocks = (Block(0, rows),)
    return TrackedModule(short_name(model, name), path, d_in, rows, column, blocks, uses, row, columns)


def _output_embedding(model: nn.Module) -> nn.Module | None:
    return model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _kinds(module: nn.Module) -> dict[str, Kind]:
    """What each of a module's own parameters does; nothing for a module that is none of these."""
    if is_linear(module):
        return {"weight": "linear", "bias": "shift"} if _is_map(module) else {}
    if isinstance(module, nn.Embedding):
        return {} if module.max_norm is not None or module.scale_grad_by_freq else {"weight": "lookup"}
    return dict(_elementwise(module))


@torch.no_grad()
def _is_map(module: nn.Module) -> bool:
    """Whether it computes W x + b: subclasses need not (quantised ones, expert routers)."""
    weight: Any = module._parameters.get("weight")
    if not is_linear(module) or weight is None:
        return False
    if type(weight.data) is not torch.Tensor or not weight.is_floating_point():  # e.g. torchao's quantised tensors
        return False
    if type(module) in (nn.Linear, Conv1D):
        return True
    try:
        d_out, d_in = linear_shape(module)
        x = torch.linspace(-1, 1, 2 * d_in, device=weight.device).reshape(1, 2, d_in).to(weight.dtype)
        y = type(module).forward(module, x)  # not module(x), which would run the user's hooks
        if weight.is_meta:  # a model without numbers can only be asked for shapes
            return isinstance(y, torch.Tensor) and y.shape == (1, 2, d_out)
        expected = x @ (weight if is_transposed(module) else weight.T) + (0 if module.bias is None else module.bias)
        return isinstance(y, torch.Tensor) and y.shape == (1, 2, d_out) and torch.allclose(y, expected, 0.05, 1e-3)
    except Exception:  # whatever such a class does with this input, it is no plain linear map
        return False


@torch.no_grad()
def _elementwise(module: nn.Module) -> Iterator[tuple[str, Kind]]:
    """Which parameters of a norm scale and which shift: y = γ ⊙ x̂ + β, or (1 + γ) ⊙ x̂ + β, asked of the module.

    A module around others that have parameters is none: it could not be asked again without running them, too.
    """
    own: dict[str, Any] = {key: p for key, p in module._parameters.items() if p is not None}
    if any(child is not module and child._parameters for child in module.modules()):
        return
    if not own or any(not p.is_floating_point() or p.shape != next(iter(own.values())).shape for p in own.values()):
        return
    some = next(iter(own.values()))
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(some.device)

    x = draw(1, 2, *some.shape)
    values = {key: draw(*some.shape) for key in own}
    try:
        with holding(module, **values):
            y = type(module).forward(module, x)
            if not isinstance(y, torch.Tensor) or y.shape != x.shape:
                return
            for key in own:
                step = draw(*some.shape)
                with holding(module, **{key: values[key] + step}):
                    change = type(module).forward(module, x) - y
                scaled = normalised(module, key, (x,), {})
                if some.is_meta:
                    yield key, "shift" if key == "bias" else "scale"
                elif torch.allclose(change, step.expand_as(change), 1e-3, 1e-4):
                    yield key, "shift"
                elif torch.allclose(change, step * scaled, 1e-3, 1e-4):
                    yield key, "scale"
    except Exception:  # whatever such a module does with this input, it is no such norm
        return
