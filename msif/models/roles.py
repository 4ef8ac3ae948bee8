"""What a loaded model is asked for: its objective, its labels, its lengths, its vocabulary."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from msif.data.batching import TokenBatches
from msif.errors import MsifError
from msif.models.heads import head_objective, label2id, problem_of
from msif.models.loading import LoadedModel
from msif.models.objectives import CausalLM, Objective, Regression
from msif.models.vocabulary import embedding_rows, outgrown, refuse_unknown

log = logging.getLogger(__name__)

DEFAULT_LENGTH = 512


def objective_for(task: str, loaded: LoadedModel) -> Objective:
    """The training objective of a language model or of a classifier."""
    if task == "lm":
        return CausalLM()
    objective, config = head_objective(loaded.model.config, loaded.name), loaded.model.config
    if isinstance(objective, Regression) and config.problem_type is None:
        log.info("%s: one output and no problem_type in its config.json: taken for a regression", loaded.name)
    return objective


def label_arguments(loaded: LoadedModel, task: str) -> dict[str, Any]:
    """How a classifier's labels are read, as arguments of ``choose_format`` and ``encode_queries``."""
    if task != "classification":
        return {}
    config = loaded.model.config
    return {"label2id": label2id(config), "problem": problem_of(config, loaded.name)}


def check_vocabulary(batches: TokenBatches, loaded: LoadedModel) -> None:
    """Before long work: where a tokenizer has outgrown its model, no row has a token beyond the embedding.

    Rows of a stream are looked at as they come.

    Raises:
        MsifError: names row and token.
    """
    if batches.size is None or not outgrown(loaded.model, loaded.tokenizer):
        return
    rows, name = embedding_rows(loaded.model), batches.corpus.name
    for document in batches.documents():
        refuse_unknown(document.input_ids, rows, loaded.tokenizer, f"row {document.index} of '{name}'")


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
