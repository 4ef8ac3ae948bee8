"""The exact Gauss-Newton matrix of a few thousand parameters, in its own eigenbasis, under the library's filters.

    H = (1/N) Σ_z J_zᵀ (diag p − p pᵀ) J_z = RᵀR,    R the N·C rows S_zᵀ J_z / √N with S_z S_zᵀ = diag p − p pᵀ

Letters: N images, C classes, P parameters of the side's maps, r the rank that is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.digits.images import Images
from msif.attribution.gradients import Side, query_gradients
from msif.curvature.filters import Filter
from msif.curvature.preconditioners import Preconditioner
from msif.curvature.vectors import Vectors


class ExactCurvature:
    """U diag(σ) Uᵀ of H, U (P, r) and σ (P,), of which the first r are not zero."""

    def __init__(self, side: Side, images: Images) -> None:
        rows = curvature_rows(side, images)
        self.order = [module.name for module in side.tracked]
        count, parameters = rows.shape
        if count < parameters:
            values, vectors = torch.linalg.eigh(rows @ rows.T)
            # what is left is rounding, whose vectors cannot be normalised
            kept = values > 10 * torch.finfo(values.dtype).eps * values[-1]
            values, vectors = values[kept], rows.T @ (vectors[:, kept] / values[kept].sqrt())
        else:
            values, vectors = torch.linalg.eigh(rows.T @ rows)
        self.U = vectors
        self.sigma = torch.zeros(parameters, dtype=rows.dtype)
        self.sigma[: len(values)] = values.clamp(min=0)


class Exact(Preconditioner):
    """f(H) V, as a preconditioner; f is one of the library's filters."""

    def __init__(self, curvature: ExactCurvature, filter: Filter) -> None:
        self.curvature, self.filter = curvature, filter

    def apply(self, vectors: Vectors) -> Vectors:
        U, sigma = self.curvature.U, self.curvature.sigma
        values = self.filter(torch.cat([sigma, sigma.new_zeros(1)]).view(1, 1, -1), "all").flatten()
        on_rest = values[-1]  # the filter's value at 0
        flat = torch.cat([vectors[name].flatten(1) for name in self.curvature.order], dim=1)
        flat = on_rest * flat + ((flat @ U) * (values[: U.shape[1]] - on_rest)) @ U.T
        sizes = [vectors[name][0].numel() for name in self.curvature.order]
        parts = flat.split(sizes, dim=1)
        return {name: part.view_as(vectors[name]) for name, part in zip(self.curvature.order, parts, strict=True)}


def curvature_rows(side: Side, images: Images) -> Tensor:
    """R, (N·C, P)."""
    with torch.no_grad():
        logits = side.objective.outputs(side.model, images)
    p = torch.softmax(logits, dim=-1)
    roots = p.sqrt()
    # (diag √p − p √pᵀ) times its transpose is diag p − p pᵀ
    S = torch.diag_embed(roots) - p.unsqueeze(2) * roots.unsqueeze(1)
    rows = []
    for column in range(logits.shape[1]):
        weights = S[:, :, column] / len(images) ** 0.5
        gradients = query_gradients(side, [images], lambda outputs, batch, w=weights: (outputs * w).sum(-1))
        rows.append(torch.cat([gradients[module.name].flatten(1) for module in side.tracked], dim=1))
    return torch.cat(rows)
