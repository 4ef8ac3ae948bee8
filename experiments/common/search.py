"""Scores of texts alone: by words, and by meaning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from msif.candidates.embedding import EmbeddingSelector, load_embedding_model
from msif.candidates.words import words


def bm25_scores(queries: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """BM25+ on words (Lv and Zhai 2011), (Q, N); the frequencies are those of all texts."""
    from rank_bm25 import BM25Plus

    index = BM25Plus([words(text) for text in texts])
    rows = []
    for query in tqdm(queries, desc="BM25", unit="query", disable=None):
        # a word that no text has scores nothing, and would take a pass over the corpus
        rows.append(index.get_scores([word for word in words(query) if word in index.idf]))
    return np.stack(rows)


def embedding_scores(queries: Sequence[str], texts: Sequence[str], model: str | None = None) -> np.ndarray:
    """Cosine similarity of sentence embeddings, (Q, N)."""
    loaded = load_embedding_model(model)
    selector = EmbeddingSelector(len(texts), model=loaded)
    return np.asarray(selector.embed_corpus(loaded, queries)) @ np.asarray(selector.embed_corpus(loaded, texts)).T
