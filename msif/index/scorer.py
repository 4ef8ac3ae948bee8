"""Scores by an index: queries' features against those of documents that are on disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from msif.attribution.contributions import Contributions, contributions
from msif.attribution.cost import Cost
from msif.attribution.features import GradientProjector, query_features
from msif.attribution.gradients import Side, query_gradients
from msif.attribution.methods import SEARCHES
from msif.attribution.partial import PartialScores
from msif.attribution.scorers import Scores
from msif.attribution.scoring import split_bias
from msif.attribution.staged import Scaled
from msif.curvature.preconditioners import Preconditioner, consume
from msif.curvature.work import Work
from msif.data.batching import TokenBatches
from msif.errors import MsifError
from msif.index.approximate import Approximate, open_approximate, stale
from msif.index.baking import baked_vectors
from msif.index.correction import Correction, RSettings, corrected_norms, correction_of
from msif.index.plan import Plan
from msif.index.search import Found, scores_at, search
from msif.index.settings import DTYPES
from msif.index.storage import GradientIndex
from msif.models.objectives import Measurement
from msif.models.select import match_modules


@dataclass(frozen=True)
class IndexVectors:
    """Of queries: what documents' features are multiplied by.

    Attributes:
        values: (Q, D): Wᵀ of the corrected, and perhaps unit, features Wφ; or these themselves for baked documents.
        correction: W, of documents' norms.
        baked: documents' unit vectors, where they are there.
    """

    values: Tensor
    correction: Correction
    baked: GradientIndex | None = None

    @property
    def of_raw(self) -> Tensor:
        """What documents' features as they are would be multiplied by, (Q, D)."""
        if self.baked is None:
            return self.values
        return self.correction.transposed(self.values.cpu().double()).float().to(self.values.device)


class IndexScorer:
    """TrackStar's score φ(q)ᵀ R⁻¹ φ(z), or its cosine, or an estimate of multi-stage influence.

    Args:
        plan: by which the index was made.
        query_side: the model on which queries are measured.
        inverses: the later stages' inverses, first to last, which are applied to ∇m(q): with an index of
            H_1^(−1/2) ∇L(z) the dot product estimates ∇mᵀ P_K ⋯ P_1 ∇L.
        r, normalize: R, and "unit" or "none"; where nothing is said mixed R and unit norm without factors, and
            neither with them.
        measurement: of queries; see ``query_gradients``.
        search: how ``search`` finds documents: "exact", or by what "faiss" made of their baked vectors.

    Attributes:
        correction: of documents and queries; None takes R_eval from the queries that ``query_vectors`` is given.

    Raises:
        MsifError: the models differ in a module of the index; an unknown choice; faiss cannot search by this R, is not
            installed, or has nothing of these documents.
    """

    def __init__(
        self,
        plan: Plan,
        index: GradientIndex,
        query_side: Side,
        inverses: Sequence[Preconditioner] = (),
        *,
        r: str | RSettings | None = None,
        normalize: str | None = None,
        measurement: str | Measurement = "loss",
        search: str = "exact",
    ) -> None:
        exact = plan.store is not None
        r = ("none" if exact else "mixed") if r is None else r
        self.r = RSettings.parse(r) if isinstance(r, str) else r
        self.normalize = ("none" if exact else "unit") if normalize is None else normalize
        if self.normalize not in ("none", "unit"):
            raise MsifError(f"normalize is '{normalize}': choose 'none' or 'unit'.")
        if search not in SEARCHES:
            raise MsifError(f"search is '{search}': choose one of {', '.join(SEARCHES)}.")
        self.approximate: Approximate | None = None
        if search == "faiss":
            self.approximate = open_approximate(index, self.r, self.normalize)
        names = [module.name for module in plan.side.tracked]
        self.left_out: dict[str, str] = {}
        shared, differing = match_modules(query_side.tracked, plan.side.tracked)
        if set(shared) != set(names):
            name = next(name for name in names if name not in shared)
            raise MsifError(
                f"the index holds module '{name}', which is {differing[name]}: build one with --modules that both "
                "models have."
            )
        self.plan, self.index, self.inverses = plan, index, list(inverses)
        self.query_side, self.candidate_side = query_side.restricted(names), plan.side
        self.measurement = measurement
        self.correction: Correction | None = None
        self._place_of: dict[int, int] = {}  # of rows of the corpus that was scored

    @property
    def max_length(self) -> int:
        """Tokens that the index has of a document."""
        return int(self.index.manifest["run"]["max_length"])

    @property
    def applied(self) -> Sequence[Scaled]:
        return [self.plan.features, *self.inverses]

    def query_vectors(self, queries: Iterable[Any]) -> IndexVectors:
        """One pass over the queries, and the first time one over the index for R.

        Raises:
            MsifError: no query, or indices that are not 0 … Q − 1.
        """
        return self._corrected(self._features(queries))

    def correction_for(self, passes: Iterable[Iterable[Any]]) -> Correction:
        """The one correction of a run whose queries come in several passes, so that these do not change its scores."""
        return correction_of(self.index, self.r, torch.cat([self._features(queries).cpu() for queries in passes]))

    def _features(self, queries: Iterable[Any]) -> Tensor:
        """Of queries, (Q, D), float32."""
        if self.inverses:
            vectors = query_gradients(self.query_side, queries, self.measurement)
            for inverse in reversed(self.inverses):
                vectors = consume(inverse, vectors)
            features = self.plan.features.of_vectors(self.candidate_side.tracked, vectors)
        else:
            features = query_features(self.query_side, queries, self.plan.features, self.measurement)
        return features.float()

    def _corrected(self, features: Tensor) -> IndexVectors:
        correction = self.correction or correction_of(self.index, self.r, features)
        corrected = correction.apply(features.cpu().double())
        if self.normalize == "none":
            return IndexVectors(correction.transposed(corrected).float().to(features.device), correction)
        corrected = F.normalize(corrected, dim=1, eps=torch.finfo(corrected.dtype).tiny)
        baked = baked_vectors(self.index, self.r, correction)
        values = correction.transposed(corrected) if baked is None else corrected
        return IndexVectors(values.float().to(features.device), correction, baked)

    def _documents(self, vectors: IndexVectors, places: np.ndarray | None) -> tuple[GradientIndex, np.ndarray | None]:
        """What vectors are multiplied with, and what products are divided by."""
        if vectors.baked is not None:
            return vectors.baked, None
        if self.normalize == "none":
            return self.index, None
        return self.index, corrected_norms(self.index, vectors.correction, places)

    def search(self, vectors: IndexVectors, k: int, *, places: np.ndarray | None = None, lowest: bool = False) -> Found:
        """The k documents of each query with the largest scores, or the lowest; see ``search``.

        Raises:
            MsifError: R has changed since faiss' index was made.
        """
        if self.approximate is not None:
            if vectors.baked is None:
                raise stale(self.approximate.baked.path)
            return self.approximate.search(vectors.values, k, places=places, lowest=lowest)
        documents, norms = self._documents(vectors, places)
        return search(documents, vectors.values, k, places=places, norms=norms, lowest=lowest)

    def score_vectors(
        self, vectors: IndexVectors, candidates: Iterable[Any], partial: PartialScores | None = None
    ) -> Scores:
        """By the documents' features in the index; nothing of them is computed.

        Raises:
            MsifError: a document is not in the index, or there is none.
        """
        if not isinstance(candidates, TokenBatches):
            raise MsifError("an index knows documents by their text: give candidates as msif.TokenBatches.")
        partial = partial or PartialScores()
        if not partial.complete:
            rows, places = self.places_of(candidates)
            documents, norms = self._documents(vectors, places)
            with partial.under_way():
                partial.add(rows, scores_at(documents, vectors.values, places, norms).T)
        found = partial.whole()
        if found is None or not len(found[0]):
            raise MsifError("there is no candidate to score.")
        rows, scores = found
        return Scores(scores.T.copy(), rows)

    def places_of(self, candidates: TokenBatches) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a corpus, and their places in the index; those that have nothing to be indexed are left out.

        Raises:
            MsifError: the index lacks a document, or it read documents otherwise.
        """
        found: list[tuple[int, int]] = []
        missing: list[int] = []
        for row, digest in candidates.corpus.hashes(candidates.format.columns, candidates.indices):
            place = self.index.places.get(digest)
            if place is not None:
                found.append((row, place))
            elif digest not in self.index.skipped:
                missing.append(row)
        if missing:
            raise MsifError(
                f"{len(missing)} documents are not in the index in {self.index.path}; the first is row {missing[0]} of "
                f"'{candidates.corpus.name}': add them with python -m msif.build_index --output {self.index.path}."
            )
        rows, places = np.array(found, dtype=np.int64).reshape(-1, 2).T
        self._place_of = dict(found)
        return rows, places

    def score(self, queries: Iterable[Any], candidates: Iterable[Any]) -> Scores:
        return self.score_vectors(self.query_vectors(queries), candidates)

    def explain(
        self, vectors: IndexVectors, candidates: Iterable[Any], queries: Sequence[int] | None = None
    ) -> list[Contributions]:
        """Per-token and per-block parts of the scores of a few candidates, by the transposed projection.

        Exact but for the rounding of what is stored. A pass over the candidates for each query, whose vectors are as
        large as the model here.
        """
        chosen = range(len(vectors.values)) if queries is None else queries
        side, batches = self.candidate_side, list(candidates)
        biased = {module.name: module.bias for module in side.tracked}
        values = vectors.of_raw
        parts: list[list[Contributions]] = []
        for query in chosen:
            one = self.plan.features.transposed(side.tracked, values[query : query + 1].to(torch.float32))
            parts.append(contributions(side, split_bias(one, biased), batches, cotangent=self.plan.cotangent))
        merged = [
            Contributions(
                same[0].index, torch.cat([part.tokens for part in same]), torch.cat([part.blocks for part in same])
            )
            for same in zip(*parts, strict=True)
        ]
        return self._over_norms(vectors, batches, merged)

    def _over_norms(
        self, vectors: IndexVectors, batches: Sequence[Any], merged: list[Contributions]
    ) -> list[Contributions]:
        if self.normalize == "none":
            return merged
        rows = [part.index for part in merged]
        if all(row in self._place_of for row in rows):
            features = self.index.rows([self._place_of[row] for row in rows])
        else:  # documents that were not scored
            features = document_features(self.plan, batches)
        norms = vectors.correction.apply(features).norm(dim=1).double()
        norms = norms.clamp(min=torch.finfo(norms.dtype).tiny)
        return [
            replace(part, tokens=part.tokens / norm, blocks=part.blocks / norm)
            for part, norm in zip(merged, norms, strict=True)
        ]

    def cost(self) -> Cost:
        width, weights = self.index.width, sum(m.d_out * m.shape[1] for m in self.candidate_side.tracked)
        making = 3.0 * width + (1.5 * weights if self.inverses else 0)
        loss = self.candidate_side.objective.loss_gradient
        sizes = [block.stop - block.start for block in self.index.columns] if self.r.kind != "none" else []
        corrected = sum(size**2 for size in sizes)  # of a document's norm, and R's own sums
        return Cost(
            width,
            making,
            loss,
            lambda B, T, queries: Work(B * width * queries, double=2 * B * corrected),
            Work(3 * width, double=2 * corrected),
            stored=width * DTYPES[self.index.settings.dtype].itemsize,
        )


def document_features(plan: Plan, batches: Iterable[Any]) -> Tensor:
    """Documents' features made anew, (n, D), float32 on the CPU, in the order of the batches."""
    with GradientProjector(plan.side, plan.features, [plan.cotangent]) as project:
        return torch.cat([project(batch)[0].float().cpu() for batch in batches])
