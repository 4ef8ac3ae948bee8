"""Conversations: tokens by the tokenizer's chat template, and which of them the assistant wrote."""

from __future__ import annotations

import re
from typing import Any

from msif.errors import MsifError

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def encode_chat(tokenizer: Any, messages: list[dict[str, Any]], where: str) -> tuple[list[int], list[bool]]:
    """Tokens of a conversation, and for each whether it belongs to an assistant turn.

    A template with a `{% generation %}` mark says itself what the assistant writes. For any other, the conversation
    is rendered up to and including each assistant turn, and again up to its header: what the second rendering
    lacks is the turn. The tokens are those of the whole rendering, so that no token is split at a turn's edge.

    Returns:
        ids and mask, two lists of length T.

    Raises:
        MsifError: no chat template, a slow tokenizer, a template that refuses the conversation or rewrites turns.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise MsifError("The tokenizer has no chat template for --messages-field; set tokenizer.chat_template.")
    if isinstance(template, dict):
        template = template.get("default", "")
    if not tokenizer.is_fast:  # a slow one cannot say which characters a token stands for
        raise MsifError("--messages-field needs a fast tokenizer; give prompt and completion fields instead.")
    if GENERATION.search(template):
        encoded = _apply(tokenizer, messages, where, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        return list(encoded["input_ids"]), [bool(token) for token in encoded["assistant_masks"]]
    whole = _apply(tokenizer, messages, where, tokenize=False)
    spans = [
        _span(tokenizer, messages, turn, whole, where)
        for turn, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    # A token is the assistant's when its last character is.
    mask = [any(start < end <= stop for start, stop in spans) for _, end in encoded["offset_mapping"]]
    return list(encoded["input_ids"]), mask


def _span(tokenizer: Any, messages: list[dict[str, Any]], turn: int, whole: str, where: str) -> tuple[int, int]:
    """Where in the rendering an assistant turn begins (after its header) and ends (after its end mark)."""
    done = _apply(tokenizer, messages[: turn + 1], where, tokenize=False)
    before = _apply(tokenizer, messages[:turn], where, tokenize=False) if turn else ""
    header = _apply(tokenizer, messages[:turn], where, tokenize=False, add_generation_prompt=True) if turn else ""
    if not (whole.startswith(done) and done.startswith(before)):
        raise MsifError(
            f"The chat template rewrites earlier turns of {where}, so that the assistant's tokens cannot be told; "
            "put {% generation %} marks into the template, or give prompt and completion fields."
        )
    pairs = zip(header, done, strict=False)
    shared = next((place for place, (left, right) in enumerate(pairs) if left != right), min(len(header), len(done)))
    return shared, len(done)


def _apply(tokenizer: Any, messages: list[dict[str, Any]], where: str, **options: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except Exception as error:  # templates raise what they like
        reason = " ".join(str(error).split()).rstrip(".")
        raise MsifError(f"The chat template does not take the messages of {where} ({reason}); mend the row.") from error
