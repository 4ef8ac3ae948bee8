"""Fingerprints that tell whether factors belong to a model: of its weights, and of its configuration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Set

import torch
from torch import Tensor, nn

from msif.models.adapters import Adapter

# Settings that say where a model came from or how it is run, not which function its weights compute. The padding
# token is among them because loading may fill it in, and padding never changes a result.
_INCIDENTAL = {
    "_name_or_path",
    "architectures",
    "dtype",
    "gradient_checkpointing",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}

# and an adapter's: where its base model is, and how it was saved
_ADAPTER_INCIDENTAL = {"base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping"}


def fingerprint_weights(model: nn.Module) -> str:
    """SHA-256 (hexadecimal) of all parameters: names, dtypes, shapes and bytes, in the order of their names.

    A tied parameter counts once, under the first of its names. The device does not matter; the dtype does, so take
    the fingerprint of a checkpoint before casting it.
    """
    return _fingerprint(sorted(model.named_parameters())).hexdigest()


def fingerprint_adapted(base: nn.Module, missing: Set[str], adapter: Adapter) -> str:
    """The same of a base model, but for what its checkpoint has not, and of an adapter's tensors and settings.

    Not of the merged weights, whose last bits depend on the machine that multiplies.
    """
    held = [(name, parameter) for name, parameter in sorted(base.named_parameters()) if name not in missing]
    settings = {key: _ordered(value) for key, value in adapter.settings.items() if key not in _ADAPTER_INCIDENTAL}
    digest = hashlib.sha256(_fingerprint(held).digest())
    digest.update(_fingerprint(adapter.tensors()).digest())
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> hashlib._Hash:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        # numpy has no bfloat16, and bytes are what is hashed
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest


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


def _ordered(value: object) -> object:
    """Lists that PEFT makes of sets, whose order says nothing."""
    return sorted(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value
