"""The one interface of preselection, and how the command line names its kinds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from msif.errors import MsifError

log = logging.getLogger(__name__)

KINDS = ("knn", "bm25", "index")


class Selector(Protocol):
    """Finds the documents that are worth scoring."""

    def select(self, queries: Sequence[str], texts: Sequence[str]) -> list[np.ndarray]:
        """Candidates of each query.

        Args:
            queries: Q texts; for a prompt/completion query both (`Query.text`).
            texts: N texts of the corpus, by row number.

        Returns:
            for each query int64 row numbers, shape (k,), k ≤ N, best first, none twice.
        """
        ...


@dataclass(frozen=True)
class CandidateSpec:
    """What `--candidates` asks for: kinds with their numbers of documents; no parts means all documents."""

    parts: tuple[tuple[str, int], ...] = ()

    @property
    def all(self) -> bool:
        """Whether every document is a candidate, so that no text need be read."""
        return not self.parts

    @property
    def of_index(self) -> int | None:
        """How many an index is to find."""
        return dict(self.parts).get("index")

    @property
    def of_texts(self) -> CandidateSpec | None:
        """What is found by the texts; None where nothing is."""
        rest = tuple(part for part in self.parts if part[0] != "index")
        return CandidateSpec(rest) if rest or self.all else None

    def __str__(self) -> str:
        return "+".join(f"{kind}:{count}" for kind, count in self.parts) or "all"


def parse_candidates(spec: str) -> CandidateSpec:
    """Read `knn:1000`, `bm25:200`, `index:500`, `knn:500+bm25:500` (the union) or `all`.

    Raises:
        MsifError: anything else.
    """
    if not isinstance(spec, str):
        raise MsifError(f"candidates are {spec!r}: write knn:1000, bm25:200, index:500, knn:500+bm25:500 or all.")
    if spec.strip().lower() == "all":
        return CandidateSpec()
    parts: list[tuple[str, int]] = []
    for part in spec.lower().split("+"):
        kind, _, count = part.strip().partition(":")
        if kind not in KINDS or not (count.isascii() and count.isdecimal()) or int(count) < 1:
            raise MsifError(
                f"Cannot read '--candidates {spec}'; write knn:1000, bm25:200, index:500, knn:500+bm25:500 or all."
            )
        if kind in dict(parts):
            raise MsifError(f"'--candidates {spec}' names {kind} twice; name each kind once.")
        parts.append((kind, int(count)))
    return CandidateSpec(tuple(parts))


class AllSelector:
    """Every document, in the order of the corpus."""

    def select(self, queries: Sequence[str], texts: Sequence[str]) -> list[np.ndarray]:
        return [np.arange(len(texts), dtype=np.int64) for _ in queries]


@dataclass(frozen=True)
class UnionSelector:
    """What any of several selectors finds: first the best of each, then the second of each, and so on."""

    selectors: Sequence[Selector]

    def select(self, queries: Sequence[str], texts: Sequence[str]) -> list[np.ndarray]:
        found = [selector.select(queries, texts) for selector in self.selectors]
        return [interleave([rows[query] for rows in found]) for query in range(len(queries))]


def interleave(rankings: Sequence[np.ndarray]) -> np.ndarray:
    """Merge rankings, each best first, by rank; of a row that occurs twice the better place counts."""
    ranks = np.concatenate([np.arange(len(rows)) for rows in rankings])
    merged = np.concatenate(rankings)[np.argsort(ranks, kind="stable")]
    _, first = np.unique(merged, return_index=True)
    return merged[np.sort(first)].astype(np.int64)


def at_most(count: int, texts: Sequence[str]) -> int:
    """`count`, or the number of texts where there are fewer; the log says so."""
    if count > len(texts):
        log.info("%d candidates were asked for, the corpus has %d documents: all are taken", count, len(texts))
    return min(count, len(texts))
