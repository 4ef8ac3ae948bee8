"""Scores of a pass on disk, so that an interrupted one goes on where it was, and a whole one need not be repeated."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from msif import distributed
from msif.curvature.store import load_tensors, save_tensors
from msif.errors import MsifError

log = logging.getLogger(__name__)

PARTIAL = "partial.safetensors"


def partial_file(number: int) -> str:
    """Of the pass of that number, from 0."""
    return PARTIAL if number == 0 else f"partial.{number}.safetensors"


def partial_files(folder: Path) -> list[Path]:
    """Of all passes and processes."""
    return sorted(folder.glob("partial*.safetensors"))


def together(rows: Sequence[np.ndarray], scores: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(rows (n,) ascending, scores (n, Q)) of several parts; of a row that is in several the first."""
    ascending, first = np.unique(np.concatenate(rows), return_index=True)
    return ascending, np.concatenate(scores)[first]


class Once:
    """The rows of one pass, of which each comes once."""

    def __init__(self) -> None:
        self.rows: set[int] = set()

    def take(self, rows: Iterable[int]) -> None:
        """
        Raises:
            MsifError: one of them was there.
        """
        for row in rows:
            if row in self.rows:
                raise MsifError(f"two candidates have the index {row}: number them so that each has one of its own.")
            self.rows.add(row)

    def check(self) -> None:
        """That no row came with two processes."""
        everywhere = Once()
        for rows in distributed.gathered(self.rows):
            everywhere.take(rows)


def _own(path: Path) -> Path:
    """Where this process keeps its part of a pass."""
    share = "" if distributed.processes() == 1 else f".{distributed.rank()}-of-{distributed.processes()}"
    return path.with_name(f"{path.stem}{share}.safetensors")


def _all(path: Path) -> list[Path]:
    """The parts of a pass."""
    return [*([path] if path.is_file() else []), *sorted(path.parent.glob(f"{path.stem}.*-of-*.safetensors"))]


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
        self.path, self.every = None if path is None else _own(path), every
        self._describe = identity
        self.batches, self.complete = 0, False
        self.rows: list[np.ndarray] = []
        self.scores: list[np.ndarray] = []
        self._held = np.zeros(0, dtype=np.int64)
        self._last = time.monotonic()
        if path is not None:
            self._load(_all(path))

    @cached_property
    def identity(self) -> str:
        """Hash of all that the scores depend on."""
        return hashlib.sha256(json.dumps(self._describe(), sort_keys=True, default=str).encode()).hexdigest()

    def _load(self, files: Sequence[Path]) -> None:
        """What all processes of an interrupted run had scored, however many they were."""
        whole: dict[int, int] = {}  # processes -> of them with a complete part
        for file in files:
            tensors, metadata = load_tensors(file)
            if metadata.get("identity") == self.identity:
                self.batches += int(metadata["batches"])
                self.rows.append(tensors["rows"].numpy())
                self.scores.append(tensors["scores"].numpy())
                if of := metadata.get("complete"):
                    whole[int(of)] = whole.get(int(of), 0) + 1
        self.complete = any(found == of for of, found in whole.items())
        if self.rows:
            rows, scores = self.whole() or (self._held, self._held)
            self.rows, self.scores, self._held = [rows], [scores], rows
            log.info("going on after %d scored documents", len(rows))

    def whole(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(rows (n,) ascending, scores (n, Q)) of all batches together; None where there is none."""
        return together(self.rows, self.scores) if self.rows else None

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
        if self.path is None or (not self.rows and not self.complete):
            return
        rows, scores = self.whole() or (self._held, np.zeros((0, 0), np.float32))
        tensors = {"rows": torch.from_numpy(rows), "scores": torch.from_numpy(scores)}
        metadata = {"identity": self.identity, "batches": str(self.batches)}
        metadata |= {"complete": str(distributed.processes())} if self.complete else {}
        try:
            save_tensors(self.path, tensors, metadata)
        except MsifError as error:
            log.warning("what was scored is not kept for a next run: %s", error)
