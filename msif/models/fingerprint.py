"""Fingerprints that tell whether factors belong to a model: of its weights, and of its configuration."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import nn

# Settings that say where a model came from or how it is run, not which function its weights compute. The padding
# token is among them because loading may fill it in, and padding never changes a result.
_INCIDENTAL = {
    "_name_or_path",
    "architectures",
    "dtype",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


def fingerprint_weights(model: nn.Module) -> str:
    """SHA-256 (hexadecimal) of all parameters: names, dtypes, shapes and bytes, in the order of their names.

    A tied parameter counts once, under the first of its names. The device does not matter; the dtype does, so take
    the fingerprint of a checkpoint before casting it.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}|{parameter.dtype}|{tuple(parameter.shape)}|".encode())
        # numpy has no bfloat16, and bytes are what is hashed
        flat = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()


def fingerprint_config(model: nn.Module) -> str:
    """SHA-256 (hexadecimal) of what the configuration says about the function, without paths and versions.

    A model without a configuration is described by the names and types of its modules.
    """
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "to_dict"):
        description = _without_incidentals(config.to_dict())
    else:
        description = [[name, type(module).__qualname__] for name, module in model.named_modules()]
    return hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode()).hexdigest()


def _without_incidentals(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _without_incidentals(item) for key, item in value.items() if key not in _INCIDENTAL}
    return value
