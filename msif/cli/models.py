"""What the commands make of a loaded model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version

import torch

from msif.errors import MsifError
from msif.models.loading import LoadedModel
from msif.models.objectives import CausalLM, Objective, SequenceClassification

DEFAULT_LENGTH = 512


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


def longest(asked: int | None, loaded: Sequence[LoadedModel]) -> int:
    """--max-length, or 512 where the models' position tables allow it.

    Raises:
        MsifError: more is asked for than a model has positions.
    """
    limits = {model.name: positions(model) for model in loaded}
    for name, limit in limits.items():
        if asked is not None and limit is not None and asked > limit:
            raise MsifError(f"--max-length is {asked}, and {name} has {limit} positions: give at most that.")
    return asked if asked is not None else min([DEFAULT_LENGTH, *(n for n in limits.values() if n is not None)])


def positions(loaded: LoadedModel) -> int | None:
    """The longest sequence that a model's configuration declares; None where it declares none."""
    config = loaded.model.config.get_text_config()
    found = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len")]
    return next((int(value) for value in found if value), None)
