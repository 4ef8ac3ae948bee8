"""Figures without a screen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msif.atomic import atomic_path
from msif.errors import MsifError

DPI = 120


@contextmanager
def figure(path: Path | str, width: float = 6.4, height: float = 4.0, rows: int = 1, columns: int = 1) -> Iterator[Any]:
    """Yields the axes of a matplotlib figure, an array where there are several; saved as PNG when the block ends.

    Args:
        width, height: of one panel, in inches.

    Raises:
        MsifError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MsifError("plots need matplotlib: pip install 'msif[plots]'.") from error
    # not pyplot, which keeps figures and a screen's backend in global state
    drawing = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = drawing.subplots(rows, columns)
    yield axes
    with atomic_path(Path(path)) as part:
        drawing.savefig(part, format="png", dpi=DPI)
