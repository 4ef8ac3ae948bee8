"""What would else go wrong only after queries are answered, looked up before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from msif.attribution.staged import Staged
from msif.candidates import embedding
from msif.candidates.selection import parse_candidates
from msif.curvature.filters import DampedInverse, Scale
from msif.curvature.inputs import device_and_dtype
from msif.curvature.preconditioners import EKFAC
from msif.index.scorer import IndexScorer

if TYPE_CHECKING:
    from msif.job import Job


def look_ahead(job: Job) -> Any:
    """The embedding model of candidates "knn:N", None where there are none.

    Raises:
        MsifError: it cannot be loaded, an index lacks a document that it is to score or to choose from, or Λ of an
            inverse is singular and not damped.
    """
    spec = parse_candidates(job.options.candidates)
    if spec.of_index is not None or (spec.all and isinstance(job.scorer, IndexScorer)):
        assert job.chooser is not None
        job.chooser.places_of(job.documents(range(len(job.corpus))))
    if isinstance(job.scorer, Staged):
        names = [module.name for module in job.scorer.candidate_side.tracked]
        dtype = device_and_dtype(job.scorer.query_side.model)[1]
        for inverse in job.scorer.applied:
            # solvers start from EK-FAC, where they have it
            read = getattr(inverse, "approximate", inverse)
            if isinstance(read, EKFAC) and isinstance(read.filter, DampedInverse):
                _check_not_singular(read, read.filter, names, dtype)
    return embedding.load_embedding_model(job.options.embedding_model) if "knn" in dict(spec.parts) else None


def _check_not_singular(inverse: EKFAC, filter: DampedInverse, names: Iterable[str], dtype: torch.dtype) -> None:
    """Reads Λ only where nothing is added to it, for no Λ is below zero."""
    damping = filter.damping_scale if filter.damping is None else filter.damping
    if not (_is_zero(damping) and _is_zero(filter.alpha)):
        return
    for name in names:
        if name in inverse.factors:  # what lacks is told by the inverse
            filter(inverse.spectrum(inverse.factors[name].to("cpu", dtype)), name)


def _is_zero(value: Scale) -> bool:
    return not isinstance(value, Mapping) and value == 0
