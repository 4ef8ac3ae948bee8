"""What storing features in fewer bits does to scores and to their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from msif.index.storage import decoded

SAMPLE, TOP = 256, 10


def rounding_error(features: Tensor, stored: Mapping[str, Tensor], columns: Sequence[slice]) -> dict[str, Any] | None:
    """Of cosines between some documents: the largest change, and how many of the first ten are the same, on average.

    Args:
        features: (n, D), before they were rounded.

    Returns:
        {"documents", "largest", "top10"}, or None of fewer than three documents, among which there is no order.
    """
    exact = features[:SAMPLE]
    if len(exact) < 3:
        return None
    rounded = decoded({name: part[:SAMPLE] for name, part in stored.items()}, columns)
    before, after = (_cosines(one) for one in (exact, rounded))
    count = min(TOP, len(exact) - 1)
    first, second = before.topk(count).indices, after.topk(count).indices
    same = (first[:, :, None] == second[:, None, :]).any(2).float().mean()
    largest = (before - after).masked_fill(torch.eye(len(exact), dtype=torch.bool), 0.0).abs().max()
    return {"documents": len(exact), "largest": float(largest), f"top{TOP}": float(same)}


def _cosines(features: Tensor) -> Tensor:
    unit = F.normalize(features, dim=1)
    return (unit @ unit.T).fill_diagonal_(-2.0)
