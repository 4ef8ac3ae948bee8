"""What a sequence classification head was trained for, and the padding token by which it finds a text's end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from msif.data.labels import PROBLEMS, Problem
from msif.errors import MsifError
from msif.models.objectives import DocumentHead, MultiLabelClassification, Regression, SequenceClassification


def problem_of(config: Any, name: str = "the model") -> Problem:
    """What a head was trained for: what its configuration says, else what transformers takes it for.

    That is a regression for one output, and one class a document for several.

    Raises:
        MsifError: a configuration that says something else, or that of a head whose loss is always zero.
    """
    problem = config.problem_type or ("regression" if config.num_labels == 1 else PROBLEMS[0])
    if problem not in PROBLEMS:
        raise MsifError(f"config.json of {name} has problem_type {problem!r}: write one of {', '.join(PROBLEMS)}.")
    if problem == "single_label_classification" and config.num_labels < 2:
        raise MsifError(
            f"{name} chooses among {config.num_labels} class, so that its loss is always zero: write problem_type "
            '"regression" or "multi_label_classification" into its config.json.'
        )
    return problem


def head_objective(config: Any, name: str = "the model") -> DocumentHead:
    """The objective that a sequence classifier was trained with."""
    pad, problem = config.get_text_config().pad_token_id, problem_of(config, name)
    if problem == "single_label_classification":
        return SequenceClassification(pad)
    kind = Regression if problem == "regression" else MultiLabelClassification
    return kind(pad, config.num_labels)


def label2id(config: Any) -> Mapping[str, int]:
    """A head's class names, those of either direction of its configuration."""
    names = {str(name): int(index) for index, name in (config.id2label or {}).items()}
    names |= {str(name): int(index) for name, index in (config.label2id or {}).items()}
    return {name: index for name, index in names.items() if index < config.num_labels}


def padding_token(name: str, config: Any, tokenizer: PreTrainedTokenizerBase, task: str, embeddings: int) -> int | None:
    """A padding token that the model can be made with: the configuration's, else a classifier's tokenizer's, else none.

    A language model needs none, for padding is never read; a negative one names an embedding from the end, which was
    never trained. A classifier finds the last real token of a padded document by it.

    Raises:
        MsifError: a classifier has none.
    """
    stored = config.get_text_config().pad_token_id
    if task != "classification":
        return stored if stored is not None and -embeddings <= stored < embeddings else None
    for token in (stored, tokenizer.pad_token_id):
        if token is not None and 0 <= token < embeddings:
            return int(token)
    if tokenizer.pad_token_id is None:
        raise MsifError(
            f"The tokenizer of {name!r} has no padding token, which a classifier needs: set tokenizer.pad_token (the "
            "one used in its training), and save the tokenizer."
        )
    raise MsifError(
        f"The padding token of {name!r} ({tokenizer.pad_token!r}, {tokenizer.pad_token_id}) is beyond its {embeddings} "
        "embeddings: write the pad_token_id of its training into its config.json."
    )
