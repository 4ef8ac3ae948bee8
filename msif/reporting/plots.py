"""Figures without a screen, all in one style."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msif.atomic import atomic_path
from msif.errors import MsifError
from msif.reporting.style import style

FORMATS = (".png", ".svg", ".pdf")
# no date, so that the same numbers make the same file
NO_DATE = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


@contextmanager
def figure(
    path: Path | str,
    width: float = 6.4,
    height: float = 4.0,
    rows: int = 1,
    columns: int = 1,
    *,
    vector: bool = False,
) -> Iterator[Any]:
    """Yields the axes of a matplotlib figure, an array where there are several; saved when the block ends.

    Args:
        path: .png, .svg or .pdf; a PNG where it says nothing.
        width, height: of one panel, in inches.
        vector: write an SVG beside it, too.

    Raises:
        MsifError: matplotlib is not installed, or the file is of another kind.
    """
    path = Path(path)
    if path.suffix and path.suffix not in FORMATS:
        raise MsifError(f"a plot cannot be written as '{path.suffix}': name it {', '.join(FORMATS)}.")
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MsifError("plots need matplotlib: pip install 'msif[plots]'.") from error
    with rc_context(style()):
        # not pyplot, which keeps figures and a screen's backend in global state
        drawing = Figure(figsize=(width * columns, height * rows), layout="constrained")
        yield drawing.subplots(rows, columns)
        for file in dict.fromkeys([path, *([path.with_suffix(".svg")] if vector else [])]):
            kind = file.suffix or ".png"
            with atomic_path(file) as part:
                drawing.savefig(part, format=kind[1:], metadata=NO_DATE[kind])
