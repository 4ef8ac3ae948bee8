"""Conversations as data: a list of turns, each a role and what it says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msif.errors import MsifError


def check_messages(messages: Any, where: str, exact: bool = True) -> list[dict[str, Any]]:
    """The turns of a conversation, without the empty keys that a columnar table adds; none is an empty list.

    Args:
        exact: whether a null is as it was written (``Corpus.exact``): then it is an argument of a tool like any other.

    Raises:
        MsifError: something else than turns with a role, and a text or a list of parts as content.
    """
    turns = [] if messages is None else messages
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not all(map(_is_turn, turns)):
        raise MsifError(f'The messages of {where} must be a list of {{"role": ..., "content": ...}}; rewrite them.')
    return [_without_gaps(turn, exact) for turn in turns]


def _is_turn(turn: Any) -> bool:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
        return False
    content = turn.get("content")
    parts = isinstance(content, Sequence) and all(isinstance(part, Mapping) for part in content)
    return content is None or isinstance(content, str) or parts


def _without_gaps(value: Any, exact: bool) -> Any:
    """A JSON value without the keys that hold null, at any depth; but for tools' arguments that are ``exact``."""
    if isinstance(value, Mapping):
        return {
            key: inner if exact and key == "arguments" else _without_gaps(inner, exact)
            for key, inner in value.items()
            if inner is not None
        }
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without_gaps(inner, exact) for inner in value]
    return value


def say_messages(messages: Iterable[Mapping[str, Any]]) -> str:
    """The texts of some turns, a line each; of a list of parts (text, images, ...) those of the text parts."""
    return "\n".join(text for turn in messages for text in texts_of(turn.get("content")))


def texts_of(content: Any) -> list[str]:
    """What a turn's content says: itself, or the texts among its parts."""
    parts = [{"text": content}] if isinstance(content, str) else content or []
    return [part["text"] for part in parts if isinstance(part.get("text"), str) and part["text"]]
