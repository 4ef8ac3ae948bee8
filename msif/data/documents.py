"""Documents and batches: what every pass over data consumes."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msif.data.labels import Label


@dataclass(frozen=True)
class Document:
    """One tokenised row of a corpus.

    Attributes:
        index: row number in its corpus, counted from 0; it seeds the labels that are sampled for this document.
        input_ids: int32, shape (T,).
        supervised: bool, shape (T,): token t is one of the tokens whose loss counts (never the first one).
        label: class index of a classifier's document, or numbers for the K outputs of its head; else None.
    """

    index: int
    input_ids: np.ndarray
    supervised: np.ndarray
    label: Label | None = None

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Batch:
    """B documents, padded on the right to the longest, T tokens.

    Attributes:
        indices: int64, (B,), the documents' row numbers.
        input_ids: int64, (B, T); the id at padded positions is never read.
        attention_mask: int64, (B, T), 1 at real tokens.
        supervised: bool, (B, T).
        labels: int64, (B,), or float64, (B, K), for classification, else None.
    """

    indices: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    supervised: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def few(self, tokens: int = 8) -> Batch:
        """The first tokens of the first document, to see what a model does with a batch."""
        cut = {name: getattr(self, name)[:1, :tokens] for name in ("input_ids", "attention_mask", "supervised")}
        labels = None if self.labels is None else self.labels[:1]
        return Batch(self.indices[:1], **cut, labels=labels)

    def pair(self, tokens: int = 11) -> Batch:
        """The first and the last document, or the only one, to see whether a model keeps positions and documents apart.

        Cut to ``tokens`` and two fewer, and repeated where they are shorter, but no longer than the batch, whose
        positions the model has; no model is known to have 11 heads. Documents without tokens are left out.
        """
        with_tokens = self.attention_mask.any(1).nonzero().flatten().tolist()
        rows = with_tokens[:1] + with_tokens[1:][-1:]
        tokens = min(tokens, self.input_ids.shape[1])
        real = [self.input_ids[row][self.attention_mask[row] == 1] for row in rows]
        ids = torch.stack([row.repeat(-(-tokens // len(row)))[:tokens] for row in real])
        mask = torch.ones_like(ids)
        mask[1:, max(1, tokens - 2) :] = 0
        labels = None if self.labels is None else self.labels[rows]
        return Batch(self.indices[rows], ids, mask, mask == 1, labels)

    def to(self, device: torch.device | str) -> Batch:
        moved = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return replace(self, **moved)


def collate(documents: list[Document], pad_id: int = 0) -> Batch:
    """Pad documents on the right into one batch (B, T)."""
    length = max(len(document) for document in documents)
    input_ids = np.full((len(documents), length), pad_id, dtype=np.int64)
    mask = np.zeros((len(documents), length), dtype=np.int64)
    supervised = np.zeros((len(documents), length), dtype=bool)
    for row, document in enumerate(documents):
        input_ids[row, : len(document)] = document.input_ids
        mask[row, : len(document)] = 1
        supervised[row, : len(document)] = document.supervised
    labels = None
    if documents[0].label is not None:
        dtype = torch.float64 if isinstance(documents[0].label, tuple) else torch.int64
        labels = torch.tensor([document.label for document in documents], dtype=dtype)
    return Batch(
        indices=torch.tensor([document.index for document in documents], dtype=torch.int64),
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(mask),
        supervised=torch.from_numpy(supervised),
        labels=labels,
    )


def batches_after(batches: Iterable[Any], count: int) -> Iterator[Any]:
    """The batches after the first ``count``; a source with ``iterate(skip=...)`` skips cheaply."""
    iterate: Callable[..., Iterator[Any]] | None = getattr(batches, "iterate", None)
    return iterate(skip=count) if iterate else itertools.islice(iter(batches), count, None)


def batches_identity(batches: Iterable[Any]) -> Any:
    """What tells two sources of batches apart, as JSON: their own ``identity()``, or a hash of their tensors."""
    own: Callable[[], Any] | None = getattr(batches, "identity", None)
    if own is not None:
        return own()
    digest = hashlib.sha256()
    for batch in batches:
        for name, value in sorted(vars(batch).items()):
            if isinstance(value, Tensor):
                digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
