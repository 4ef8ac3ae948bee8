"""A model's configuration, without what its config.json says of how the model was run elsewhere."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from msif.errors import MsifError, one_line
from msif.models.adapters import Adapter
from msif.models.sources import Source

log = logging.getLogger(__name__)

# listed by transformers as causal language models, but attending in both directions or time-major
_NOT_CAUSAL = ("xlnet", "xlm", "reformer")

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_SHORT = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_ATTENTION = ("attn_implementation", "_attn_implementation")


def load_config(source: Source) -> Any:
    """The configuration of a model that is run as this toolkit runs one.

    Passes need outputs by name, and no attention maps or hidden states. Of attention kernels only PyTorch's own are
    everywhere, and differentiable as needed: sdpa, or eager where a configuration or an architecture says so.

    Raises:
        MsifError: it cannot be read or used.
    """
    name = source.name
    if source.folder is not None:
        _check_readable(name, source.folder / "config.json")
    try:
        stored, _ = PreTrainedConfig.get_config_dict(source.path, **source.options)
        changes: dict[str, Any] = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
        changes["attn_implementation"] = "eager" if "eager" in map(stored.get, _ATTENTION) else None
        for key in {"dtype", "torch_dtype"} & stored.keys():
            changes[key] = None if stored[key] is None else _dtype(stored[key])
            if stored[key] is not None and changes[key] is None:
                changes[key] = torch.float32  # which holds whatever smaller numbers are stored
                log.info("%s: its config.json names dtype %r; float32 is taken", name, stored[key])
        config = AutoConfig.from_pretrained(source.path, **source.options, **changes)
    except Exception as error:
        raise MsifError(f"The configuration of {name!r} cannot be used ({one_line(error)}).") from error
    config._attn_implementation = changes["attn_implementation"]
    asked = next((stored[key] for key in _ATTENTION if stored.get(key)), None)
    if asked not in (None, "eager", "sdpa"):
        log.info("%s: its config.json asks for attention by %r; PyTorch's own is taken", name, asked)
    for flag in ("gradient_checkpointing", "_gradient_checkpointing"):
        if getattr(config, flag, False):
            setattr(config, flag, False)  # it would compute every module twice
    return config


def take_labels(config: Any, adapter: Adapter) -> None:
    """What a classifier's adapter knows of its head: the number of its labels, and their names and the problem where a
    config.json lies beside it. An adapter's own settings say neither.
    """
    path = adapter.folder / "config.json"
    if path.is_file():
        _check_readable(adapter.name, path)
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored.get("id2label"):
            config.id2label = {int(index): label for index, label in stored["id2label"].items()}
            config.label2id = stored.get("label2id") or {label: index for index, label in config.id2label.items()}
        config.problem_type = stored.get("problem_type", config.problem_type)
    if adapter.labels is not None and adapter.labels != config.num_labels:
        config.num_labels = adapter.labels


def check_architecture(name: str, config: Any, task: str) -> None:
    """
    Raises:
        MsifError: no decoder-only language model, or one that transformers has no classifier for.
    """
    kind = config.model_type
    if kind in _NOT_CAUSAL:
        raise MsifError(
            f"{name!r} ({kind}) does not read from left to right: only causal language models are supported."
        )
    encoder = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    if config.is_encoder_decoder or encoder or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        what = "an encoder" if encoder else "not a language model"
        what = "an encoder-decoder" if config.is_encoder_decoder else what
        raise MsifError(f"{name!r} ({kind}) is {what}: only decoder-only language models are supported.")
    if task == "classification" and kind not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise MsifError(f"transformers has no classifier for model type {kind!r} of {name!r}: use --task lm.")


def _check_readable(name: str, path: Path) -> None:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MsifError(f"{name}/config.json cannot be read ({one_line(error)}): save the model again.") from error
    if not isinstance(settings, dict) or "model_type" not in settings:
        raise MsifError(f"{name}/config.json names no model_type: give a folder written by save_pretrained.")


def _dtype(stored: Any) -> torch.dtype | None:
    """A dtype to compute in; None for what is none, such as float8 or a misspelt one."""
    name = str(stored).removeprefix("torch.")
    found = _SHORT.get(name, getattr(torch, name, None))
    return found if found in _DTYPES else None
