"""Conversations: tokens by the tokenizer's chat template, and which of them the assistant wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msif.data.spans import assistant_spans, render
from msif.data.tokens import located

Messages = Sequence[dict[str, Any]]


def encode_chat(
    tokenizer: Any, messages: Messages, where: str, last_only: bool = False
) -> tuple[list[int], list[bool]]:
    """Tokens of a conversation, and for each whether it belongs to an assistant turn: to what it says, or its end mark.

    The tokens are those of the whole rendering, so that no token is split at a turn's edge. One that spans the
    beginning of a turn is the turn's, one that spans its end is not. The template writes the beginning token, if it
    wants one.

    Args:
        last_only: only the last assistant turn counts.

    Returns:
        ids and mask, two lists of length T.

    Raises:
        MsifError: no chat template, one that does not take the conversation, or in which the turns cannot be told.
    """
    text, spans = assistant_spans(tokenizer, messages, where, last_only)
    (tokens,) = located(tokenizer, [text], [[place for span in spans for place in span]], beginning=False)
    mask = [False] * len(tokens.ids)
    for start, stop in zip(tokens.before[::2], tokens.before[1::2], strict=True):
        mask[start:stop] = [True] * (stop - start)
    return tokens.ids, mask


def chat_prompt(tokenizer: Any, messages: Messages, where: str) -> list[int]:
    """The ids that a model is given to answer a conversation: its rendering with the generation prompt."""
    text = render(tokenizer, messages, where, add_generation_prompt=True)
    return located(tokenizer, [text], [[]], beginning=False)[0].ids
