"""Scores without gradients: words, meaning, representations, chance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from experiments.fact_tracing.candidates import rng
from msif.candidates.embedding import EmbeddingSelector, load_embedding_model
from msif.candidates.words import words
from msif.models.capture import frozen

CHANCE = 3  # of the random numbers, after those of the candidates


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


def representations(model: Any, batches: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    """The last hidden layer, after its norm, averaged over tokens: rows (N,) ascending, and float32 (N, hidden)."""
    rows, means = [], []
    with frozen(model), torch.no_grad():
        for batch in tqdm(batches, desc="representations", unit="batch", disable=None):
            batch = batch.to(next(model.parameters()).device)
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
            hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
            means.append(pooled(hidden, batch.attention_mask).cpu())
            rows.append(batch.indices.cpu())
    order = torch.cat(rows).argsort()
    return torch.cat(rows)[order].numpy(), torch.cat(means)[order].numpy()


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens: (B, T, d) and (B, T) -> (B, d), float32."""
    weights = mask.unsqueeze(2).float()
    return (hidden.float() * weights).sum(1) / weights.sum(1)


def cosine(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """(Q, d) and (N, d) -> (Q, N)."""
    return _unit(queries) @ _unit(candidates).T


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(rows.dtype).tiny)


def random_scores(queries: int, candidates: int, seed: int) -> np.ndarray:
    """A random order for each query, (Q, N)."""
    return rng(seed, CHANCE, 0).random((queries, candidates))
