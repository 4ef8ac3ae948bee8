"""What the commands make of a loaded model."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

import torch

from msif.models.loading import LoadedModel
from msif.models.objectives import CausalLM, Objective, SequenceClassification


def objective_for(task: str, loaded: LoadedModel) -> Objective:
    """The training objective of a language model or of a classifier."""
    if task == "lm":
        return CausalLM()
    return SequenceClassification(loaded.model.config.get_text_config().pad_token_id)


def label2id(loaded: LoadedModel, task: str) -> Mapping[str, int] | None:
    """A classifier's class names."""
    if task != "classification":
        return None
    return {str(name): int(index) for name, index in (loaded.model.config.label2id or {}).items()}


def versions() -> dict[str, str]:
    """Of what a result depends on, for provenance."""
    return {name: version(name) for name in ("msif", "torch", "transformers")} | {"cuda": str(torch.version.cuda)}
