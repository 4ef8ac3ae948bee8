"""How far fine-tuning moved the parameters: ‖θ_ft − θ_pt‖ / ‖θ_pt‖ by layer and kind of map.

Multi-stage influence models fine-tuning as staying close to the pre-trained parameters (docs/method.md). These are the
distances that say whether it did, and the cosine of the two parameter vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from msif.errors import MsifError
from msif.models.blocks import TrackedModule, matrix_of
from msif.models.names import in_attention, layer_of
from msif.models.select import track_modules

KINDS = ("q", "k", "v", "attention output", "attention other", "MLP in", "MLP out", "embeddings", "norms", "other")
Key = tuple[int | None, str]
"""(number of the decoder layer, None outside of them; kind of map)"""


@dataclass(frozen=True)
class Distance:
    """Sums over some parameters of two models; those of two sets of parameters add up.

    Attributes:
        moved: ‖θ_1 − θ_0‖².
        first, second: ‖θ_0‖² and ‖θ_1‖².
        inner: θ_0 · θ_1.
        parameters: how many there are.
    """

    moved: float
    first: float
    second: float
    inner: float
    parameters: int

    def __add__(self, other: Distance) -> Distance:
        return Distance(
            self.moved + other.moved,
            self.first + other.first,
            self.second + other.second,
            self.inner + other.inner,
            self.parameters + other.parameters,
        )

    @property
    def relative(self) -> float | None:
        """‖θ_1 − θ_0‖ / ‖θ_0‖; None where θ_0 is zero."""
        return (self.moved / self.first) ** 0.5 if self.first > 0 else None

    @property
    def cosine(self) -> float | None:
        """Of the two parameter vectors; None where one of them is zero."""
        return self.inner / (self.first * self.second) ** 0.5 if self.first > 0 and self.second > 0 else None

    @classmethod
    @torch.no_grad()
    def between(cls, first: Tensor, second: Tensor) -> Distance:
        """Of two tensors of one shape; differences in float32 or better, sums in float64."""
        wide = torch.float64 if torch.float64 in (first.dtype, second.dtype) else torch.float32
        a, b = first.to(wide), second.to(first.device, wide)
        moved, own, other, inner = (
            (x * y).sum(dtype=torch.float64).item() for x, y in ((b - a, b - a), (a, a), (b, b), (a, b))
        )
        return cls(moved, own, other, inner, a.numel())


@dataclass(frozen=True)
class Piece:
    """Parameters of one kind in one module or tensor; ``read`` gives their present values.

    Attributes:
        shape: of the weight's rows or of the tensor, without the bias that ``read`` adds as a column.
    """

    key: Key
    shape: tuple[int, ...]
    bias: bool
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Proximity:
    """Distances by layer and kind, and why each parameter that is in no distance is left out."""

    distances: Mapping[Key, Distance]
    left_out: Mapping[str, str]

    def of_kind(self, kind: str) -> Distance:
        """All layers of a kind together."""
        return total(distance for (_, name), distance in self.distances.items() if name == kind)

    @property
    def all(self) -> Distance:
        return total(self.distances.values())

    @property
    def kinds(self) -> list[str]:
        """The kinds that there are, in the order of ``KINDS``."""
        found = {kind for _, kind in self.distances}
        return [kind for kind in KINDS if kind in found]

    @property
    def layers(self) -> list[int]:
        return sorted({layer for layer, _ in self.distances if layer is not None})


def total(distances: Iterable[Distance]) -> Distance:
    return sum(distances, Distance(0.0, 0.0, 0.0, 0.0, 0))


def proximity(first: nn.Module, second: nn.Module) -> Proximity:
    """Distances between two models' parameters, with a bias as one more column of its map.

    Parameters that only one of them has, or with another shape (a replaced head, a resized vocabulary), are left out
    and named.

    Raises:
        MsifError: they share no parameter, or one of them cannot be read by layer and kind (see ``track_modules``).
    """
    ours, theirs = pieces(first), pieces(second)
    distances: dict[Key, Distance] = {}
    left_out: dict[str, str] = {}
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        a, b = ours.get(name), theirs.get(name)
        if a is None or b is None:
            left_out[name] = "only in the second model" if a is None else "only in the first model"
        elif (a.key, a.shape, a.bias) != (b.key, b.shape, b.bias):
            left_out[name] = f"{_described(a)} in the first model, {_described(b)} in the second"
        else:
            there = distances.get(a.key)
            distance = Distance.between(a.read(), b.read())
            distances[a.key] = distance if there is None else there + distance
    if not distances:
        raise MsifError("the two models share no parameter: give a model and one that was fine-tuned from it.")
    return Proximity(distances, left_out)


def pieces(model: nn.Module) -> dict[str, Piece]:
    """Every parameter of a model once, by name after the base-model prefix; "MODULE:q" for the rows of a role."""
    found: dict[str, Piece] = {}
    done: set[str] = set()
    for module in track_modules(model, "layers"):
        inner = model.get_submodule(module.path)
        done |= {f"{module.path}.{name}" for name, _ in inner.named_parameters()}
        found |= dict(_pieces_of(module, model, hidden_size(model)))
    embeddings = {id(p) for p in _embedding_parameters(model)}
    base = getattr(model, "base_model_prefix", "")
    for path, parameter in model.named_parameters():
        if path not in done:
            name = path.removeprefix(f"{base}.")
            kind = "embeddings" if id(parameter) in embeddings else "norms" if _is_norm(model, path) else "other"
            found[name] = Piece((layer_of(name), kind), tuple(parameter.shape), False, parameter.detach)
    return found


def _pieces_of(module: TrackedModule, model: nn.Module, hidden: int | None) -> Iterator[tuple[str, Piece]]:
    """One piece for each kind of row that a linear map has."""
    layer = layer_of(module.name)
    kinds = row_kinds(module, hidden)
    for kind in dict.fromkeys(kinds):
        rows = [
            row
            for block, own in zip(module.blocks, kinds, strict=True)
            if own == kind
            for row in range(block.start, block.stop)
        ]
        name = module.name if len(set(kinds)) == 1 else f"{module.name}:{kind}"
        read = lambda rows=rows: matrix_of(model, module)[rows]  # noqa: E731
        yield name, Piece((layer, kind), (len(rows), module.d_in), module.bias, read)


def row_kinds(module: TrackedModule, hidden: int | None) -> list[str]:
    """The kind of each of a linear map's blocks.

    A map of an MLP that writes the model's hidden size and reads another is its output; the other maps of attention
    modules than q, k, v and the output (low-rank factors, say) are "attention other".
    """
    if module.blocks[0].role in ("q", "k", "v"):
        return [block.role for block in module.blocks]
    if in_attention(module.name):
        kind = "attention output" if module.d_out == hidden else "attention other"
    else:
        kind = "MLP out" if module.d_out == hidden != module.d_in else "MLP in"
    return [kind] * len(module.blocks)


def hidden_size(model: nn.Module) -> int | None:
    config: Any = getattr(model, "config", None)
    return None if config is None else getattr(config.get_text_config(), "hidden_size", None)


def _embedding_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Of tokens and positions, in and out."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield from module.parameters()
    get: Any = getattr(model, "get_output_embeddings", None)
    out = get() if get is not None else None
    if out is not None:
        yield from out.parameters()


def _is_norm(model: nn.Module, path: str) -> bool:
    owner = model.get_submodule(path.rpartition(".")[0])
    return "norm" in type(owner).__name__.lower()


def _described(piece: Piece) -> str:
    return f"{piece.key[1]} {piece.shape}{' with a bias' if piece.bias else ''}"
