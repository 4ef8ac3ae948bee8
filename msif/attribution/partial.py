"""Scores of a pass on disk, so that an interrupted one goes on where it was, and a whole one need not be repeated."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from msif.curvature.store import load_tensors, save_tensors
from msif.errors import MsifError

log = logging.getLogger(__name__)

PARTIAL = "partial.safetensors"


def partial_file(number: int) -> str:
    """Of the pass of that number, from 0."""
    return PARTIAL if number == 0 else f"partial.{number}.safetensors"


class PartialScores:
    """The scores of some batches of a pass over candidates.

    A pass goes on by rows, so also with batches of another size.

    Attributes:
        batches: how many batches are in.
        rows, scores: for each of them int64 (B,) row numbers and (B, Q) scores; those of an interrupted run are one.
        complete: whether these are all batches of the pass.
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
        self.batches, self.complete = 0, False
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
            self.complete = "complete" in metadata
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
        if time.monotonic() - self._last >= self.every:
            self.save()

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Around a pass: whatever stops it, memory that runs out or the keyboard, leaves what it has scored on disk.

        A mistake does not: it has to be mended first, which changes the scores.
        """
        try:
            yield
        except MsifError:
            raise
        except BaseException:
            self.save()
            raise
        self.complete = True
        self.save()

    def save(self) -> None:
        """Writes what there is, whole or not at all; a disk that is full does not stop the pass."""
        self._last = time.monotonic()
        if self.path is None or not self.rows:
            return
        tensors = {"rows": torch.from_numpy(np.concatenate(self.rows))}
        tensors["scores"] = torch.from_numpy(np.concatenate(self.scores))
        metadata = {"identity": self.identity, "batches": str(self.batches)}
        try:
            save_tensors(self.path, tensors, metadata | ({"complete": "yes"} if self.complete else {}))
        except MsifError as error:
            log.warning("what was scored is not kept for a next run: %s", error)
