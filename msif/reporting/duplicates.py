"""Texts that say the same in nearly the same words."""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Sequence

from msif.candidates.words import words

SHINGLE = 3  # words that follow each other
ALIKE = 0.8  # of all shingles of two texts
SMALLEST = 6  # hashes by which texts that may be alike find each other


def near_duplicates(texts: Sequence[str]) -> list[int]:
    """A number for each text, that of the first one that it nearly repeats, or its own.

    Two texts are alike if they share four fifths of their shingles (Jaccard). Those are compared that have one of
    their few smallest hashes in common (Broder 1997), so that the work grows with the number of texts and not with its
    square.
    """
    shingles = [_shingles(text) for text in texts]
    group = list(range(len(texts)))
    seen: dict[int, list[int]] = {}
    for place, own in enumerate(shingles):
        smallest = heapq.nsmallest(SMALLEST, own)
        tried: set[int] = set()
        for value in smallest:
            for other in seen.get(value, ()):
                if other not in tried and group[place] == place:
                    tried.add(other)
                    if _alike(own, shingles[other]):
                        group[place] = group[other]
        if group[place] == place:
            for value in smallest:
                seen.setdefault(value, []).append(place)
    return group


def _alike(one: set[int], other: set[int]) -> bool:
    shared = len(one & other)
    return shared >= ALIKE * (len(one) + len(other) - shared)


def _shingles(text: str) -> set[int]:
    """Hashes that are the same in every process."""
    said = words(text) or text.split()  # of signs alone: what tells them apart
    if len(said) <= SHINGLE:
        return {zlib.crc32(" ".join(said).encode("utf-8", "surrogatepass"))}
    runs = zip(*(said[start:] for start in range(SHINGLE)), strict=False)
    return {zlib.crc32(" ".join(run).encode("utf-8", "surrogatepass")) for run in runs}
