"""What an adapter trained, kept when it is merged: its low-rank maps by the modules whose weights they change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from msif.errors import MsifError
from msif.models.blocks import Block, TrackedModule

SIDES = ("lora_A", "lora_B")


@dataclass(frozen=True)
class LowRank:
    """c·BA, which LoRA adds to a weight W of shape (d_out, d_in), however that is stored.

    Attributes:
        A: (r, d_in), B: (d_out, r), float64, on the CPU.
        scale: c, lora_alpha/r or, with use_rslora, lora_alpha/√r.
    """

    A: Tensor
    B: Tensor
    scale: float


@dataclass(frozen=True)
class Adapted:
    """What an adapter trained.

    Attributes:
        name: of the adapter.
        maps: path of a module -> its low-rank map, in the model's order.
        whole: paths of the modules that were trained whole beside them (``modules_to_save``).
        other: why it is not LoRA alone, for which the hop of an adapter is; None where it is.
    """

    name: str
    maps: Mapping[str, LowRank]
    whole: frozenset[str] = frozenset()
    other: str | None = None

    def checked(self) -> Adapted:
        """
        Raises:
            MsifError: it is not LoRA alone.
        """
        if self.other is not None:
            raise MsifError(
                f"--adapter-hop is for LoRA, and the adapter {self.name!r} is {self.other}: leave it out, which takes "
                "the fine-tuning as one of all weights."
            )
        return self

    @property
    def parameters(self) -> tuple[nn.Module, list[TrackedModule]]:
        """Its A and B as a module of their own and as what is tracked of it, by the names "PATH.lora_A" and "…_B"."""
        root, tracked = nn.Module(), []
        for path, low in self.maps.items():
            for side, matrix in zip(SIDES, (low.A, low.B), strict=True):
                (d_out, d_in), name = matrix.shape, f"{path}.{side}"
                _put(root, name, nn.Linear(d_in, d_out, bias=False, device="meta"))
                tracked.append(TrackedModule(name, name, d_in, d_out, False, (Block(0, d_out),)))
        return root, tracked


def adapted_by(name: str, kind: str, bias: str, layers: Mapping[str, Any]) -> Adapted:
    """What PEFT's layers hold, before they are merged.

    Args:
        kind, bias: ``peft_type`` and ``bias`` of its settings.
        layers: path of a module -> the layer that PEFT put around it.
    """
    if kind != "LORA":
        return Adapted(name, {}, other=kind)
    if bias != "none":
        return Adapted(name, {}, other=f"LoRA that trained biases, too (bias={bias!r})")
    from peft.utils.other import ModulesToSaveWrapper

    maps: dict[str, LowRank] = {}
    whole = [path for path, layer in layers.items() if isinstance(layer, ModulesToSaveWrapper)]
    for path, layer in layers.items():
        if path in whole:
            continue
        low = _low_rank(layer)
        if isinstance(low, str):
            return Adapted(name, {}, other=f"{low} at '{path}'")
        maps[path] = low
    return Adapted(name, maps, frozenset(whole))


def _low_rank(layer: Any) -> LowRank | str:
    """A layer's c, B and A; or what else it is."""
    from peft.tuners.lora import layer as lora

    if not isinstance(layer, (lora.Linear, lora.Embedding)):
        return f"a {type(layer).__name__}"
    active = layer.active_adapters
    if len(active) != 1 or layer.disable_adapters:
        return f"{len(active)} adapters"
    (key,) = active
    if layer.use_dora.get(key):
        return "DoRA"
    if layer.lora_variant or layer.lora_bias.get(key):
        return "a variant of LoRA" if layer.lora_variant else "LoRA with a bias"
    if isinstance(layer, lora.Embedding):  # W = (B A)ᵀ of shape (tokens, d)
        A, B = layer.lora_embedding_B[key].T, layer.lora_embedding_A[key].T
    else:
        A, B = layer.lora_A[key].weight, layer.lora_B[key].weight
    A, B = (matrix.detach().to("cpu", torch.float64, copy=True) for matrix in (A, B))
    return LowRank(A, B, float(layer.scaling[key]))


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    """Sets a submodule by its path, making what lies between."""
    *parents, last = path.split(".")
    for name in parents:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = getattr(root, name)
    root.add_module(last, module)
