"""Which parameters a model's forward pass takes through their modules, seen on a few tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from msif.models.blocks import TrackedModule
from msif.models.capture import frozen
from msif.models.sharding import is_sharded

TOKENS = 4


def find_idle(model: nn.Module, tracked: Sequence[TrackedModule]) -> set[str]:
    """Names of those none of whose modules runs; of none where a few tokens are not what the model takes.

    Cross attention of a decoder without its encoder is such a module, and one whose weight is read past it, as that of
    Mamba's ``dt_proj``.
    """
    if not isinstance(model, PreTrainedModel) or is_sharded(model):
        return set()
    ran: set[str] = set()
    paths = {use.path for module in tracked for use in module.uses}
    handles = [model.get_submodule(path).register_forward_hook(lambda *_, path=path: ran.add(path)) for path in paths]
    ids = torch.arange(TOKENS, device=model.device)[None]
    try:
        with frozen(model), torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except Exception:  # whatever such a model asks for, its own inputs will tell
        return set()
    finally:
        for handle in handles:
            handle.remove()
    return {module.name for module in tracked if not any(use.path in ran for use in module.uses)}
