"""All of a model's parameters, not only its tracked maps: its outputs as a function of them, with exact derivatives.

A vector over parameters is a ``Vectors`` by parameter name: a matrix as it is stored, anything of one dimension as one
row, (Q, rows, columns). So solvers, which know of names, shapes and blocks alone, serve both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from msif.curvature.tangents import AnyModel, Tangents
from msif.curvature.vectors import Vectors
from msif.errors import MsifError
from msif.models.blocks import Block
from msif.models.capture import frozen
from msif.models.objectives import Objective
from msif.models.select import match_modules


@dataclass(frozen=True)
class Parameter:
    """One parameter, seen as a matrix; a block of its own.

    Attributes:
        name: its name after the base-model prefix; the key by which two models are matched.
        path: its full name in this model (``model.get_parameter(path)``).
        size: its own shape.
    """

    name: str
    path: str
    size: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns): (1, n) for a vector of n; further dimensions are columns."""
        rows = self.size[0] if len(self.size) > 1 else 1
        return rows, torch.Size(self.size).numel() // rows

    @property
    def blocks(self) -> tuple[Block, ...]:
        return (Block(0, self.shape[0]),)


def all_parameters(model: nn.Module) -> list[Parameter]:
    """Every parameter of the model once, in its order: embeddings, maps, norms, biases, heads.

    A tied weight goes by the first of its names.

    Raises:
        MsifError: the model has none, or one that is empty or neither float32 nor float64.
    """
    base = isinstance(model, PreTrainedModel) and model.base_model is not model
    prefix = f"{model.base_model_prefix}." if base else ""
    found = []
    for path, parameter in model.named_parameters():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise MsifError(
                f"parameter '{path}' is {str(parameter.dtype).removeprefix('torch.')}: curvature over all parameters "
                "needs the model in float32 or float64 (--dtype float32)."
            )
        if parameter.numel() == 0:
            raise MsifError(f"parameter '{path}' is empty: load the whole model onto one device.")
        found.append(Parameter(path.removeprefix(prefix), path, tuple(parameter.shape)))
    if not found:
        raise MsifError("the model has no parameter.")
    return found


class ParameterFunction:
    """A model's outputs as a function of some of its parameters, around their values. Used inside ``with``.

    The model computes with stand-ins that share its parameters' memory, so its own are neither changed nor asked for
    gradients, and a tied weight is one argument, wherever it is used.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[Parameter], objective: Objective) -> None:
        self.model, self.parameters, self.objective = model, parameters, objective
        self._outputs = _Outputs(model, objective)
        self._any_model = AnyModel()

    def __enter__(self) -> ParameterFunction:
        with ExitStack() as stack:
            # fused attention kernels have no forward-mode derivative
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(frozen(self.model))
            self._values = {p.name: self.model.get_parameter(p.path).detach() for p in self.parameters}
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._values = {}
        self._stack.close()

    def restricted(self, names: Iterable[str]) -> ParameterFunction:
        """The same function of only the named parameters."""
        kept = set(names)
        return ParameterFunction(self.model, [p for p in self.parameters if p.name in kept], self.objective)

    def along(self, batch: Any, vectors: Vectors, query: int) -> tuple[Tensor, Tensor]:
        """Outputs, and J v of one vector in their shape: one forward pass in forward mode."""

        def run(tangents: Tangents) -> tuple[Tensor, Tensor]:
            outputs = self._run(batch, self._moving(tangents, self._values, vectors, query))
            return outputs.detach(), self._dependent(tangents.read(outputs))

        return self._any_model.run(run)

    def pull_back(self, batch: Any, cotangents: Callable[[Tensor], Iterable[Tensor]]) -> Iterator[dict[str, Tensor]]:
        """Jᵀ u by parameter, (rows, columns), for each u that ``cotangents`` makes of the outputs.

        One forward pass, and one backward pass each.
        """
        leaves = self._leaves()
        with torch.enable_grad():
            outputs = self._run(batch, leaves)
        found = self._dependent(outputs if outputs.requires_grad else None).detach()
        for u in cotangents(found):
            yield self._gradient(outputs, u, leaves, keep=True)

    def product(
        self, batch: Any, vectors: Vectors, query: int, curvature: Callable[[Tensor, Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """Jᵀ curvature(outputs, J v) of one vector: one pass forward, in forward mode, and one backward."""
        leaves = self._leaves()

        def run(tangents: Tangents) -> dict[str, Tensor]:
            outputs = self._run(batch, self._moving(tangents, leaves, vectors, query))
            u = curvature(outputs.detach(), self._dependent(tangents.read(outputs)))
            return self._gradient(outputs, u, leaves, keep=False)

        with torch.enable_grad():
            return self._any_model.run(run)

    def _leaves(self) -> dict[str, Tensor]:
        return {name: value.detach().requires_grad_() for name, value in self._values.items()}

    def _moving(
        self, tangents: Tangents, values: Mapping[str, Tensor], vectors: Vectors, query: int
    ) -> dict[str, Tensor]:
        return {
            name: tangents.attach(value, vectors[name][query].reshape(value.shape).to(value.dtype))
            for name, value in values.items()
        }

    def _run(self, batch: Any, values: Mapping[str, Tensor]) -> Tensor:
        stand_ins = {f"model.{parameter.path}": values[parameter.name] for parameter in self.parameters}
        return torch.func.functional_call(self._outputs, stand_ins, (batch,))

    def _gradient(self, outputs: Tensor, u: Tensor, leaves: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
        gradients = torch.autograd.grad(outputs, list(leaves.values()), u, retain_graph=keep, allow_unused=True)
        return {
            parameter.name: (torch.zeros_like(leaves[parameter.name]) if g is None else g).reshape(parameter.shape)
            for parameter, g in zip(self.parameters, gradients, strict=True)
        }

    @staticmethod
    def _dependent(value: Tensor | None) -> Tensor:
        if value is None:
            raise MsifError("the model's outputs depend on none of the parameters: choose others.")
        return value


def shared_parameters(
    first: ParameterFunction, second: ParameterFunction
) -> tuple[ParameterFunction, ParameterFunction]:
    """Both, as functions of the parameters that they share by name and shape.

    Raises:
        MsifError: they share none.
    """
    # it reads names, shapes and blocks only
    names, _ = match_modules(list(first.parameters), list(second.parameters))  # type: ignore[arg-type]
    return first.restricted(names), second.restricted(names)


class _Outputs(nn.Module):
    """The objective's forward pass as a module, so that parameters can be replaced in it."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Any) -> Tensor:
        return self.objective.outputs(self.model, batch)
