"""From a specification to its selector."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from msif.candidates.bm25 import BM25Selector
from msif.candidates.embedding import EmbeddingSelector
from msif.candidates.selection import AllSelector, CandidateSpec, Selector, UnionSelector, parse_candidates
from msif.errors import MsifError


def build_selector(
    spec: CandidateSpec | str,
    *,
    embedding_model: str | Any | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = True,
    bm25: Callable[[int], np.ndarray] | None = None,
) -> Selector:
    """The selector of a specification.

    Args:
        spec: what to select; a string is parsed.
        embedding_model: folder or hub name of a sentence-transformers model, or such a model, for `knn`; None is
            all-MiniLM-L6-v2.
        cache_dir: where embeddings are kept; None is `$MSIF_CACHE`, or else `~/.cache/msif`.
        progress: whether to show progress bars.
        bm25: (a query's number) -> BM25+ of each text, where that is known already.

    Raises:
        MsifError: a specification that cannot be read, or that names an index.
    """
    if isinstance(spec, str):
        spec = parse_candidates(spec)
    if spec.of_index is not None:
        raise MsifError("candidates of an index are found by their gradients, not by their texts: use its IndexScorer.")
    selectors: list[Selector] = [
        EmbeddingSelector(count, model=embedding_model, cache_dir=cache_dir, progress=progress)
        if kind == "knn"
        else BM25Selector(count, progress=progress, scores=bm25)
        for kind, count in spec.parts
    ]
    if not selectors:
        return AllSelector()
    return selectors[0] if len(selectors) == 1 else UnionSelector(selectors)
