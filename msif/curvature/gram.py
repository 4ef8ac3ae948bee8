"""Accumulation of xᵀx at no more than its cost."""

from __future__ import annotations

from torch import Tensor


def accumulate_gram(total: Tensor, rows: Tensor) -> None:
    """total += rowsᵀ rows, in total's dtype; rows: (n, d), total: (d, d)."""
    rows = rows.to(total.dtype)
    total.addmm_(rows.T, rows)


def accumulate_block_grams(total: Tensor, rows: Tensor) -> None:
    """total[b] += rows_bᵀ rows_b for nb adjacent column blocks; rows: (n, nb·r), total: (nb, r, r)."""
    blocks, width, _ = total.shape
    if blocks == 1:
        return accumulate_gram(total[0], rows)
    split = rows.to(total.dtype).view(-1, blocks, width).transpose(0, 1)
    total.baddbmm_(split.transpose(1, 2), split)
