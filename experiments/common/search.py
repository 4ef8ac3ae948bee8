"""Scores of texts alone: by words, and by meaning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from msif.candidates.bm25 import bm25_scores
from msif.candidates.embedding import EmbeddingSelector, load_embedding_model


def search_by_words(queries: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """BM25+ on words (Lv and Zhai 2011), (Q, N); the frequencies are those of all texts."""
    return np.stack(list(bm25_scores(queries, texts)))


def embedding_scores(queries: Sequence[str], texts: Sequence[str], model: str | None = None) -> np.ndarray:
    """Cosine similarity of sentence embeddings, (Q, N)."""
    loaded = load_embedding_model(model)
    selector = EmbeddingSelector(len(texts), model=loaded)
    return np.asarray(selector.embed_corpus(loaded, queries)) @ np.asarray(selector.embed_corpus(loaded, texts)).T
