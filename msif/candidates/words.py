"""The words of a text in any script.

Scripts that are written without spaces have no words that could be told without a dictionary. Their text is matched by
its characters and by pairs of neighbours, as search engines do: pairs tell nearly as much as words, and single
characters, which are common and weigh little, find words of one. A character is what is read as one: a letter with its
marks, or stacked letters. Korean is treated so within what its spaces set off, for particles are written onto nouns. A
segmenter would bring one dictionary for each language, and cut the same word differently in two contexts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import groupby, pairwise

LAST = 0x3347F  # the last letter of Unicode 17
# Blocks of scripts without spaces, and Hangul; of them only letters count, for their digits are numbers.
SPACELESS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    *((0x1000, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F)),  # Burmese, Shan, Mon, ...
    (0x1780, 0x17FF),  # Khmer
    *((0x1950, 0x19DF), (0x1A20, 0x1AAF), (0xAA80, 0xAADF)),  # Tai Le, New Tai Lue, Tai Tham, Tai Viet
    *((0x1B00, 0x1B7F), (0xA980, 0xA9DF)),  # Balinese, Javanese
    *((0x1100, 0x11FF), (0xA960, 0xA97F), (0xAC00, 0xD7FF)),  # Hangul
    (0x2E80, 0x9FFF),  # radicals, ideographic marks, kana, Bopomofo, ideographs
    (0xA000, 0xA48F),  # Yi
    *((0xF900, 0xFAFF), (0x1AFF0, 0x1B2FF), (0x20000, LAST)),  # more ideographs, old kana, Nushu
    (0x17000, 0x18DFF),  # Tangut, Khitan
)
POINTED = ((0x0590, 0x06FF), (0x0750, 0x077F), (0x0870, 0x08FF), (0xFB1D, 0xFB4F))  # Hebrew, Arabic
STACKERS = "\u1039\u17d2"  # they put the next letter of Burmese and Khmer below
# What is not seen and splits no word: soft hyphens, joiners, variation selectors, the stretcher of Arabic.
UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u0640\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
ASCII_WORD = re.compile(r"\w+", re.ASCII)


def normalised(text: str) -> str:
    """A text without differences that readers do not see: of case, width, composition, and unseen characters."""
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKC", UNSEEN.sub("", unicodedata.normalize("NFKC", text)).casefold())
    return text.replace("i\u0307", "i")  # what a Turkish İ turns into


def words(text: str) -> list[str]:
    """The words of a text, normalised; of scripts without spaces, and of Korean, each character is one."""
    return ASCII_WORD.findall(text.lower()) if text.isascii() else [word for piece in _pieces(text) for word in piece]


def neighbours(text: str) -> list[str]:
    """The pairs of characters that follow each other in scripts without spaces, and in Korean words."""
    if text.isascii():
        return []
    return [left + right for piece in _pieces(text) for left, right in pairwise(piece)]


def unpointed(text: str) -> list[str]:
    """The Hebrew and Arabic words that carry points or vowel marks, without them, as they are mostly written."""
    points = _patterns().points
    if text.isascii() or not points.search(text):
        return []
    bare = ((piece[0], points.sub("", piece[0])) for piece in _pieces(text))
    return [short for word, short in bare if short and short != word]


@lru_cache(maxsize=1)  # for the functions above, which are asked for the same text
def _pieces(text: str) -> list[list[str]]:
    """Words one by one, and characters in runs."""
    patterns = _patterns()
    pieces = []
    for piece in patterns.piece.findall(normalised(text)):
        if piece[0] not in patterns.apart:
            pieces.append([piece])
        else:
            pieces.append(patterns.unit.findall(piece) if patterns.mark.search(piece) else list(piece))
    return pieces


@dataclass(frozen=True)
class _Patterns:
    """Of the characters that Python's Unicode has; `re` itself knows neither marks nor scripts.

    Attributes:
        apart: the letters that are no parts of words.
        piece: a word, or a run of letters that are apart.
        unit: one character of a run.
    """

    apart: frozenset[str]
    piece: re.Pattern[str]
    unit: re.Pattern[str]
    mark: re.Pattern[str]
    points: re.Pattern[str]


@cache
def _patterns() -> _Patterns:
    kinds = [unicodedata.category(chr(code)) for code in range(LAST + 1)]
    apart = {code for code in _within(SPACELESS) if kinds[code] in ("Lo", "Lm", "Nl")}
    letters, points = _class(apart), _class(code for code in _within(POINTED) if kinds[code] == "Mn")
    marks = _class(code for code, kind in enumerate(kinds) if kind[0] == "M")
    others = _class(code for code, kind in enumerate(kinds) if kind[0] in "LMN" and code not in apart)
    return _Patterns(
        frozenset(map(chr, apart)),
        re.compile(f"[{letters}][{letters}{marks}]*|[_{others}]+"),
        re.compile(f"[{letters}](?:[{STACKERS}][{letters}]|[{marks}])*"),
        re.compile(f"[{marks}]"),
        re.compile(f"[{points}]+"),
    )


def _within(blocks: Iterable[tuple[int, int]]) -> Iterator[int]:
    return (code for first, last in blocks for code in range(first, last + 1))


def _class(codes: Iterable[int]) -> str:
    """The inside of a character class, as ranges."""
    ranges = []
    for _, group in groupby(enumerate(sorted(codes)), lambda pair: pair[1] - pair[0]):  # equal within a range
        members = [code for _, code in group]
        ranges.append(f"{re.escape(chr(members[0]))}-{re.escape(chr(members[-1]))}")
    return "".join(ranges)
