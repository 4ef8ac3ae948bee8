"""Texts to token ids: what a tokenizer puts around a text, and which tokens stand for which of its characters."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import Any

# Asked not to truncate or pad: a tokenizer file can carry such settings, and they would be obeyed.
WHOLE = {"truncation": False, "padding": False, "verbose": False}

PART = "\ufffd"  # what a tokenizer decodes part of a character to
CONTEXT = 3  # tokens that can come before the last one of a character, which has four bytes at most


@dataclass(frozen=True)
class Tokens:
    """One text's ids, and where places in the text lie among them.

    Attributes:
        ids: T token ids.
        before: for each place that was asked for, the number of tokens that end at or before it. A token that spans a
            place comes after it: it says something of what follows.
    """

    ids: list[int]
    before: list[int]


def plain(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """What `tokenizer(text)` makes of each text, whole."""
    return tokenizer(list(texts), **WHOLE)["input_ids"] if texts else []


def prompt_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """The ids that a model is given to go on from: no end token or separator, and one beginning token at most."""
    return located(tokenizer, [prompt], [[]], beginning=True)[0].ids


def pair_tokens(tokenizer: Any, prompts: Sequence[str], completions: Sequence[str]) -> list[Tokens]:
    """Each prompt and its completion, tokenised together; `before` holds the number of the prompt's tokens.

    As for a prompt, a beginning token is added where the tokenizer has one and the text does not begin with it, and
    nothing is added at the end.
    """
    texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    return located(tokenizer, texts, [[len(prompt)] for prompt in prompts], beginning=True)


def said_after(tokenizer: Any, before: Sequence[int], ids: Sequence[int], skip_special_tokens: bool = False) -> str:
    """What some tokens say after others, in whole characters: one that they begin and do not end is left out.

    They are decoded together, because some tokenizers drop the first space of a text.
    """
    options = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": False}
    known = tokenizer.decode(list(before), **options).rstrip(PART)
    whole = tokenizer.decode([*before, *ids], **options).rstrip(PART)
    pairs = enumerate(zip(known, whole, strict=False))
    return whole[next((place for place, (one, other) in pairs if one != other), len(known)) :]


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token of a text says; a character of several tokens is said by the last of them."""
    return [said_after(tokenizer, ids[max(place - CONTEXT, 0) : place], [token]) for place, token in enumerate(ids)]


def located(tokenizer: Any, texts: Sequence[str], places: Sequence[Sequence[int]], *, beginning: bool) -> list[Tokens]:
    """Tokens of texts, with the number of them before each place (a number of characters).

    A fast tokenizer tells which characters a token stands for. Of a slow one, the tokens before a place are those
    that the text up to there and the whole text begin with alike.

    Args:
        beginning: put the tokenizer's beginning token before a text that does not begin with it.
    """
    if not texts:
        return []
    if getattr(tokenizer, "is_fast", False):
        return _by_offsets(tokenizer, texts, places, beginning)
    return [_by_beginnings(tokenizer, text, there, beginning) for text, there in zip(texts, places, strict=True)]


def _by_offsets(tokenizer: Any, texts: Sequence[str], places: Sequence[Sequence[int]], beginning: bool) -> list[Tokens]:
    encoded = tokenizer(
        list(texts),
        add_special_tokens=beginning,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        **WHOLE,
    )
    # such a token takes the blanks that follow it, which say nothing of whose it is
    swallowing = {id for id, token in tokenizer.added_tokens_decoder.items() if token.rstrip}
    result = []
    for text, there, ids, offsets, added in zip(
        texts, places, encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True
    ):
        first, last = _added(added) if beginning else (0, len(ids))
        own = ids[first:last]
        ends = [
            start + len(text[start:end].rstrip()) if id in swallowing else end
            for id, (start, end) in zip(own, offsets[first:last], strict=True)
        ]
        reached = list(accumulate(ends, max))  # some tokens stand for no character, and say (0, 0)
        before = [bisect_right(reached, place) if place else 0 for place in there]
        result.append(_begun(ids[:first], own, before))
    return result


def _added(mask: Sequence[int]) -> tuple[int, int]:
    """From where to where a text's own tokens go, between those that the tokenizer added at either end."""
    first = sum(1 for _ in takewhile(bool, mask))
    if first == len(mask):  # nothing is the text's own
        return 0, 0
    return first, len(mask) - sum(1 for _ in takewhile(bool, reversed(mask)))


def _by_beginnings(tokenizer: Any, text: str, places: Sequence[int], beginning: bool) -> Tokens:
    own = _bare(tokenizer, text)
    before = []
    for place in places:
        same = takewhile(lambda pair: pair[0] == pair[1], zip(own, _bare(tokenizer, text[:place]), strict=False))
        before.append(len(own) if place >= len(text) else sum(1 for _ in same))
    prefix: list[int] = []
    if beginning and own:
        wrapped = plain(tokenizer, [text])[0]
        starts = (start for start in range(len(wrapped)) if wrapped[start : start + len(own)] == own)
        prefix = wrapped[: next(starts, 0)]
    return _begun(prefix, own, before)


def _bare(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, **WHOLE)["input_ids"]


def _begun(prefix: list[int], own: list[int], before: list[int]) -> Tokens:
    """A text's own tokens after what the tokenizer puts before them, unless they begin with that already."""
    if not own or own[: len(prefix)] == prefix:
        return Tokens(list(own), before)
    return Tokens([*prefix, *own], [len(prefix) + count for count in before])
