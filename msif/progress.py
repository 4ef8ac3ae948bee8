"""Progress bars, of one process of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any


def progress(items: Iterable[Any] | None = None, *, hidden: bool = False, **options: Any) -> Any:
    """A ``tqdm`` bar on a terminal, and none of a process that others speak for."""
    from tqdm import tqdm

    processes = sys.modules.get("msif.distributed")  # which brings torch, and of which nobody has heard without it
    follows = processes is not None and not processes.leads()
    return tqdm(items, disable=True if hidden or follows else None, **options)
