"""Tokens that a tokenizer has and its model has not: a word that was added without resizing the embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from msif.errors import MsifError


def guard_vocabulary(model: Any, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Where a tokenizer has more tokens than the model's embedding, has the model refuse those beyond it by name.

    Without it the look-up fails with an IndexError, or on a GPU with an assertion that ends the process.
    """
    rows = embedding_rows(model)
    if not outgrown(model, tokenizer):
        return

    def check(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args:  # some models pass ready embeddings
            refuse_unknown(args[0], rows, tokenizer, f"the text for {name!r}")

    model.get_input_embeddings().register_forward_pre_hook(check)


def outgrown(model: Any, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether there are tokens beyond the model's embedding; they may never occur."""
    return max(tokenizer.get_vocab().values(), default=0) >= embedding_rows(model)


def embedding_rows(model: Any) -> int:
    """How many tokens a model's input embedding has."""
    return int(model.get_input_embeddings().weight.shape[0])


def refuse_unknown(ids: Any, rows: int, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """
    Args:
        ids: a tensor or an array of token ids.

    Raises:
        MsifError: one is beyond the ``rows`` of an embedding.
    """
    ids = torch.as_tensor(ids)
    beyond = ids[(ids >= rows) | (ids < 0)]
    if len(beyond):
        token = int(beyond[0])
        raise MsifError(
            f"In {where} there is the token {tokenizer.convert_ids_to_tokens(token)!r} ({token}), and the model's "
            f"embedding has {rows} tokens where its tokenizer has {len(tokenizer)}: give the tokenizer of its "
            "training, or leave the text out."
        )
