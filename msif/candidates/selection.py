"""The one interface of preselection, and how the command line names its kinds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from msif.errors import MsifError

log = logging.getLogger(__name__)

KINDS = ("knn", "bm25")


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

    def __str__(self) -> str:
        return "+".join(f"{kind}:{count}" for kind, count in self.parts) or "all"


def parse_candidates(spec: str) -> CandidateSpec:
    """Read `knn:1000`, `bm25:200`, `knn:500+bm25:500` (the union) or `all`.

    Raises:
        MsifError: anything else.
    """
    if spec.strip().lower() == "all":
        return CandidateSpec()
    parts: list[tuple[str, int]] = []
    for part in spec.lower().split("+"):
        kind, _, count = part.strip().partition(":")
        if kind not in KINDS or not (count.isascii() and count.isdecimal()) or int(count) < 1:
            raise MsifError(f"Cannot read '--candidates {spec}'; write knn:1000, bm25:200, knn:500+bm25:500 or all.")
        if kind in dict(parts):
            raise MsifError(f"'--candidates {spec}' names {kind} twice; name each kind once.")
        parts.append((kind, int(count)))
    return CandidateSpec(tuple(parts))


def build_selector(
    spec: CandidateSpec | str,
    *,
    embedding_model: str | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> Selector:
    """The selector of a specification.

    Args:
        spec: what to select; a string is parsed.
        embedding_model: folder or hub name of a sentence-transformers model, for `knn`; None is all-MiniLM-L6-v2.
        cache_dir: where embeddings are kept; None is `$MSIF_CACHE`, or else `~/.cache/msif`.
        progress: whether to show progress bars.
    """
    from msif.candidates.bm25 import BM25Selector
    from msif.candidates.embedding import EmbeddingSelector

    if isinstance(spec, str):
        spec = parse_candidates(spec)
    selectors: list[Selector] = [
        EmbeddingSelector(count, model=embedding_model, cache_dir=cache_dir, progress=progress)
        if kind == "knn"
        else BM25Selector(count, progress=progress)
        for kind, count in spec.parts
    ]
    if not selectors:
        return AllSelector()
    return selectors[0] if len(selectors) == 1 else UnionSelector(selectors)


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
