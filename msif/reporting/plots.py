"""Figures without a screen, all in one style, each as pixels and as vectors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msif.atomic import atomic_path
from msif.errors import MsifError
from msif.reporting.style import style

# no date, so that the same numbers make the same file
FORMATS: dict[str, dict[str, Any]] = {".png": {}, ".svg": {"Date": None}}
UNIT = re.compile(r"\([^()]+\)$")
NUMBER = re.compile(r"[-+−]?[\d.,e+-]+ ?%?")


@contextmanager
def figure(
    path: Path | str,
    width: float = 6.4,
    height: float = 4.0,
    rows: int = 1,
    columns: int = 1,
    **shared: Any,
) -> Iterator[Any]:
    """Yields the axes of a matplotlib figure, an array where there are several; saved when the block ends.

    A PNG and an SVG are written. Every axis of numbers must be labelled with its unit at the end, as in "loss (nats)"
    or "documents (number)". An axis of names says itself what it is.

    Args:
        path: without its suffix, or with one of the two.
        width, height: of one panel, in inches.
        shared: ``sharex`` and ``sharey`` of matplotlib.

    Raises:
        MsifError: matplotlib is not installed, the file is of another kind, or an axis has no label with a unit.
    """
    path = Path(path)
    if path.suffix and path.suffix not in FORMATS:
        raise MsifError(f"a plot cannot be written as '{path.suffix}': name it .png, and an .svg is made beside it.")
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MsifError("plots need matplotlib: pip install 'msif[plots]'.") from error
    with rc_context(style()):
        # not pyplot, which keeps figures and a screen's backend in global state
        drawing = Figure(figsize=(width * columns, height * rows), layout="constrained")
        yield drawing.subplots(rows, columns, **shared)
        _check_labels(drawing, path.stem)
        for suffix, metadata in FORMATS.items():
            with atomic_path(path.with_suffix(suffix)) as part:
                drawing.savefig(part, format=suffix[1:], metadata=metadata)


def _check_labels(drawing: Any, name: str) -> None:
    for panel in drawing.axes:
        for letter in "xy":
            # of axes that are shared, one label is enough
            siblings = getattr(panel, f"get_shared_{letter}_axes")().get_siblings(panel)
            labels = [getattr(other, f"get_{letter}label")() for other in siblings]
            if panel.axison and not _names(getattr(panel, f"{letter}axis")) and not any(map(UNIT.search, labels)):
                said = next(filter(None, labels), "")
                raise MsifError(
                    f"the {letter} axis of the plot '{name}' says '{said}': end it with its unit, as in 'loss (nats)'."
                )


def _names(axis: Any) -> bool:
    """Whether its marks are names: they were given as text, and not all of it is numbers."""
    from matplotlib.category import StrCategoryLocator
    from matplotlib.ticker import FixedLocator

    if isinstance(axis.get_major_locator(), StrCategoryLocator):
        return True
    is_given = isinstance(axis.get_major_locator(), FixedLocator)
    marks = [label.get_text() for label in axis.get_ticklabels()] if is_given else []
    return any(mark and "$" not in mark and not NUMBER.fullmatch(mark) for mark in marks)
