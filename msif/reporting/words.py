"""From tokens with parts of a score to the words of a text that a person reads."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

BROKEN = "\ufffd"  # what a token that holds a piece of a character decodes to


@dataclass(frozen=True)
class Word:
    """A stretch of text with its part of the score.

    Attributes:
        space: the white space before it.
        part: None for text that the model did not read, beyond the longest length.
    """

    space: str
    text: str
    part: float | None


def words(text: str, tokens: Sequence[tuple[str, float]]) -> list[Word]:
    """The text cut into words, each with the sum of its tokens' parts.

    Tokens are found in the text one after the other. One that is not there (a special token, a character that the
    tokenizer replaced) stands as it is, so that no part is lost; pieces of one character take the text between their
    neighbours.
    """
    found: list[Word] = []
    position = 0
    merged = list(_merged(tokens))
    for number, (token, part) in enumerate(merged):
        core = token.strip()
        start = _first(text, position, white=False)
        if BROKEN in token:
            end = _end_of_broken(text, start, merged[number + 1 :])
        elif core and text.startswith(core, start):
            end = start + len(core)
        else:
            found.append(Word(" ", core or ("↵" if "\n" in token else "␣"), part))
            continue
        found.append(Word(text[position:start], text[start:end], part))
        position = end
    if text[position:].strip():
        start = _first(text, position, white=False)
        found.append(Word(text[position:start], text[start:].rstrip(), None))
    return found


def strongest(units: Sequence[Word], score: float, count: int) -> list[tuple[str, float]]:
    """(the word and the next one, which it predicts; its part) of the largest parts of the score's sign."""
    sign = 1.0 if score >= 0 else -1.0
    read = [unit for unit in units if unit.part is not None]
    following = [*(f" → {unit.text}" for unit in read[1:]), ""]
    named = [(unit.text + then, unit.part or 0.0) for unit, then in zip(read, following, strict=True)]
    return sorted((pair for pair in named if sign * pair[1] > 0), key=lambda pair: -sign * pair[1])[:count]


def _first(text: str, start: int, white: bool) -> int:
    """The first place from ``start`` on that is white space, or is not; the end where there is none."""
    while start < len(text) and text[start].isspace() != white:
        start += 1
    return start


def _merged(tokens: Sequence[tuple[str, float]]) -> Iterator[tuple[str, float]]:
    """Tokens joined where one goes on the word of the one before."""
    held: tuple[str, float] | None = None
    for token, part in tokens:
        if held is not None and _joins(held[0], token):
            held = held[0] + token, held[1] + part
        else:
            if held is not None:
                yield held
            held = token, part
    if held is not None:
        yield held


def _joins(left: str, right: str) -> bool:
    return not left or not right or (_of_word(left[-1]) and _of_word(right[0]))


def _of_word(character: str) -> bool:
    """A letter, a digit or a piece of one, but for scripts that put no spaces between words."""
    letter = character.isalnum() and unicodedata.east_asian_width(character) not in "WF"
    return letter or character == BROKEN


def _end_of_broken(text: str, start: int, following: Sequence[tuple[str, float]]) -> int:
    """Where a word with broken characters ends: where the next token is found, or with its run of non-space."""
    end = _first(text, start, white=True)
    token = following[0][0] if following else ""
    core = token.strip()
    if not core or token[0].isspace() or BROKEN in core:
        return end
    place = text.find(core, start + 1, end)
    return place if place >= 0 else end
