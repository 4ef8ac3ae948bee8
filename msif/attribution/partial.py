"""Scores of a pass that is under way, on disk, so that an interrupted one goes on where it was."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from msif.curvature.store import load_tensors, save_tensors

log = logging.getLogger(__name__)

PARTIAL = "partial.safetensors"


class PartialScores:
    """The scores of some batches of a pass over candidates.

    A pass goes on by rows, so also with batches of another size.

    Attributes:
        batches: how many batches are in.
        rows, scores: for each of them int64 (B,) row numbers and (B, Q) scores; those of an interrupted run are one.
    """

    def __init__(
        self, path: Path | None = None, identity: Callable[[], Any] = lambda: None, every: float = 600.0
    ) -> None:
        """
        Args:
            path: where to keep them; None keeps them in memory only.
            identity: gives all that the scores depend on, as JSON; a file of another identity is not believed. It may
                read the corpus, and is asked only when there is a file to read or to write.
            every: seconds between two writes.
        """
        self.path, self.every = path, every
        self._describe = identity
        self.batches = 0
        self.rows: list[np.ndarray] = []
        self.scores: list[np.ndarray] = []
        self._held = np.zeros(0, dtype=np.int64)
        self._last = time.monotonic()
        if path is not None and path.is_file():
            self._load(path)

    @cached_property
    def identity(self) -> str:
        """Hash of all that the scores depend on."""
        return hashlib.sha256(json.dumps(self._describe(), sort_keys=True, default=str).encode()).hexdigest()

    def _load(self, path: Path) -> None:
        tensors, metadata = load_tensors(path)
        if metadata.get("identity") == self.identity:
            self.batches = int(metadata["batches"])
            self.rows, self.scores = [tensors["rows"].numpy()], [tensors["scores"].numpy()]
            self._held = self.rows[0]
            log.info("going on after %d scored documents", len(self._held))

    def has(self, rows: np.ndarray) -> bool:
        """Whether an interrupted run scored all of a batch; what it scored of a part is forgotten, to be done again."""
        known = np.isin(rows, self._held)
        if known.any() and not known.all():
            kept = ~np.isin(self._held, rows)
            self.rows[0], self.scores[0], self._held = self._held[kept], self.scores[0][kept], self._held[kept]
        return len(self._held) > 0 and bool(known.all())

    def add(self, rows: np.ndarray, scores: np.ndarray) -> None:
        """Takes a batch in; writes all of them when it is time."""
        self.batches += 1
        self.rows.append(rows)
        self.scores.append(scores)
        if self.path is not None and time.monotonic() - self._last >= self.every:
            self.save()

    def save(self) -> None:
        """Writes what there is, whole or not at all; nothing without a path or scores."""
        if self.path is None or not self.rows:
            return
        tensors = {"rows": torch.from_numpy(np.concatenate(self.rows))}
        tensors["scores"] = torch.from_numpy(np.concatenate(self.scores))
        save_tensors(self.path, tensors, {"identity": self.identity, "batches": str(self.batches)})
        self._last = time.monotonic()
