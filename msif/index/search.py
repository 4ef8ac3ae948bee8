"""Exact search over an index: all queries against all documents, in chunks, with the best and the worst kept."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from msif.errors import MsifError
from msif.index.storage import GradientIndex
from msif.progress import progress


@dataclass(frozen=True)
class Found:
    """What a search found, best first.

    Attributes:
        places: int64, (Q, k), of documents in the index.
        scores: float32, (Q, k).
    """

    places: np.ndarray
    scores: np.ndarray


def search(
    index: GradientIndex,
    vectors: Tensor,
    k: int,
    *,
    places: np.ndarray | None = None,
    norms: np.ndarray | None = None,
    lowest: bool = False,
) -> Found:
    """The k documents of each query with the largest ⟨v, φ⟩, or ⟨v, φ⟩/norm.

    Reads the index once, in order; the next chunk is read while one is scored.

    Args:
        vectors: (Q, D), on the device where products are to be made.
        places: ascending, (n,), of the documents to choose from; all where nothing is said.
        norms: (n,), by which scores are divided.
        lowest: the smallest instead, the most negative first: opponents.

    Raises:
        MsifError: k is below 1, or vectors of another size.
    """
    if k < 1:
        raise MsifError(f"{k} documents are asked for: ask for 1 or more.")
    if vectors.shape[1] != index.width:
        raise MsifError(f"vectors have {vectors.shape[1]} features where the index has {index.width}.")
    device, sign = vectors.device, -1.0 if lowest else 1.0
    count = len(index) if places is None else len(places)
    best = torch.zeros(len(vectors), 0, device=device, dtype=vectors.dtype)
    where = torch.zeros(len(vectors), 0, device=device, dtype=torch.int64)
    start = 0
    with progress(desc="searching", unit="doc", total=count) as bar:
        for own, features in ahead(index.chunks(places)):
            scores = sign * (vectors @ features.to(device, vectors.dtype).T)
            if norms is not None:
                scores /= _positive(norms[start : start + len(own)]).to(device, scores.dtype)
            found, order = scores.topk(min(k, len(own)), dim=1)
            names = torch.from_numpy(own).to(device)[order]
            best, order = torch.cat([best, found], 1).topk(min(k, best.shape[1] + found.shape[1]), dim=1)
            where = torch.cat([where, names], 1).gather(1, order)
            start += len(own)
            bar.update(len(own))
    return Found(where.cpu().numpy(), (sign * best).float().cpu().numpy())


def scores_at(index: GradientIndex, vectors: Tensor, places: np.ndarray, norms: np.ndarray | None = None) -> np.ndarray:
    """⟨v, φ⟩, or ⟨v, φ⟩/norm, of some documents, float32, (Q, n), in the order of ``places``.

    Args:
        norms: (n,), by which scores are divided.
    """
    result = np.empty((len(vectors), len(places)), dtype=np.float32)
    order = np.argsort(places, kind="stable")
    ascending = places[order]
    for own, features in ahead(index.chunks(places)):
        scores = (vectors @ features.to(vectors.device, vectors.dtype).T).float().cpu().numpy()
        start, stop = np.searchsorted(ascending, own[0]), np.searchsorted(ascending, own[-1], side="right")
        mine = order[start:stop]
        result[:, mine] = scores[:, np.searchsorted(own, ascending[start:stop])]
    return result if norms is None else result / _positive(norms).numpy()


def _positive(norms: np.ndarray) -> Tensor:
    return torch.from_numpy(norms).clamp(min=torch.finfo(torch.float32).tiny)


def ahead(chunks: Iterator[tuple[np.ndarray, Tensor]]) -> Iterator[tuple[np.ndarray, Tensor]]:
    """The same, each read while the one before is in use."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = pool.submit(next, chunks, None)
        while (chunk := coming.result()) is not None:
            coming = pool.submit(next, chunks, None)
            yield chunk
