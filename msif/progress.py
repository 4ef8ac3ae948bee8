"""Progress bars, of one process of a run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from msif import distributed


def progress(items: Iterable[Any] | None = None, *, hidden: bool = False, **options: Any) -> Any:
    """A ``tqdm`` bar on a terminal, and none of a process that others speak for."""
    return tqdm(items, disable=True if hidden or not distributed.leads() else None, **options)
