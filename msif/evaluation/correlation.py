"""Correlations of scores, row by row."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from msif.errors import MsifError


def pearson(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Pearson's correlation along the last axis, in float64.

    Args:
        a, b: (…, n), the same shape, n ≥ 2.

    Returns:
        (…); NaN where a row of either is constant, for which it is not defined.

    Raises:
        MsifError: other shapes, or NaN or infinity.
    """
    a, b = _checked(a, b)
    # scaled first, so that a row of very small or very large scores neither vanishes nor overflows
    a, b = _centred(a), _centred(b)
    norms = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip((a * b).sum(-1) / norms, -1.0, 1.0)


def spearman(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Spearman's rank correlation along the last axis: Pearson's of the ranks, ties sharing their mean rank.

    Shapes, NaN and errors as for ``pearson``.
    """
    a, b = _checked(a, b)
    return pearson(rankdata(a, axis=-1), rankdata(b, axis=-1))


def _checked(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim == 0 or a.shape[-1] < 2:
        raise MsifError(f"scores of shapes {a.shape} and {b.shape} have no correlation: give two of the same, n ≥ 2.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise MsifError("scores with NaN or infinity have no correlation: look at the method that gave them.")
    return a, b


def _centred(a: np.ndarray) -> np.ndarray:
    constant = (a == a[..., :1]).all(-1, keepdims=True)  # whose mean may differ from it in the last digit
    largest = np.abs(a).max(-1, keepdims=True)
    a = a / np.where(largest > 0, largest, 1.0)
    return np.where(constant, 0.0, a - a.mean(-1, keepdims=True))
