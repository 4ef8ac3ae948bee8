"""Weights that no device holds whole: FSDP2, where every forward and backward pass is one of all processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from msif import distributed
from msif.errors import MsifError


def shard(model: nn.Module, device: torch.device) -> None:
    """Leaves this process its share of each parameter, on its device; a layer is whole only while it runs.

    Parameters are frozen for good. What is tracked must be known, and fingerprints taken, before.

    Raises:
        MsifError: there is one process, or the model has no list of layers.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if is_sharded(model):
        return
    if not distributed.active():
        raise MsifError("--fsdp shares weights out between processes: start the command by torchrun.")
    mesh = init_device_mesh(device.type, (distributed.processes(),))
    model.requires_grad_(False)
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    distributed.go_in_step()


def is_sharded(model: nn.Module) -> bool:
    return any(hasattr(parameter, "to_local") for parameter in model.parameters())


def held_bytes(parameter: Any) -> int:
    """What a parameter takes here."""
    own = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return own.numel() * own.element_size()


def bytes_of_share(model: nn.Module, processes: int) -> float:
    """What one process holds of the weights at most: its share, two layers whole, and what is in no layer."""
    size = weight_bytes(model)
    layers = [weight_bytes(layer) for layer in _layers(model)]
    return size / processes + 2 * max(layers) + size - sum(layers)


def weight_bytes(model: nn.Module) -> int:
    return sum(held_bytes(parameter) for parameter in model.parameters())


def _layers(model: nn.Module) -> list[nn.Module]:
    """The longest list of modules, by what they hold."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise MsifError("the model has no list of layers by which its weights could be shared out: leave --fsdp out.")
    return max(lists, key=lambda layers: sum(p.numel() for layer in layers for p in layer.parameters()))
