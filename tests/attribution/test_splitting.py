"""Vectors of an answer's tokens against dense ones, and the sums of what they give against the whole, in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import alone, dense_gradients, documents
from test_influence import dense_inverse
from test_self_influence import TEXTS, stage_of

from msif.attribution.logra import LoGraScorer
from msif.attribution.scorers import InfluenceScorer
from msif.attribution.segments import SegmentedScorer
from msif.attribution.splitting import frames_of, split_vectors, why_not_split
from msif.curvature.arnoldi import Arnoldi
from msif.curvature.cg import CG
from msif.curvature.filters import Accumulation, DampedInverse, Decay
from msif.curvature.preconditioners import EKFAC
from msif.data.documents import collate

(QUERY,) = documents([7], seed=3, prompt=3)
TOKENS = [replace(QUERY, index=number, supervised=np.arange(7) == place) for number, place in enumerate(range(3, 7))]


@pytest.fixture(scope="module")
def stages():
    return stage_of(0), stage_of(1)


def inverses(stages):
    return [EKFAC(stages[0][1], DampedInverse(0.02)), EKFAC(stages[1][1], DampedInverse(0.03, alpha=0.01))]


def summed(scorer):
    """(parts of each document's tokens for each token of the answer, (A, T); the same of the whole, (T,))."""
    frames = frames_of(scorer, [collate([QUERY])])
    # in batches of another order than their numbers'
    vectors = split_vectors(scorer, [collate(TOKENS[2:]), collate(TOKENS[:2])], frames)
    whole = scorer.query_vectors([collate([QUERY])])
    texts = [collate(TEXTS)]
    return [
        (one.tokens, other.tokens[0])
        for one, other in zip(scorer.explain(vectors, texts), scorer.explain(whole, texts), strict=True)
    ]


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("normalize", ["none", "unit", "both"])
@pytest.mark.parametrize("measurement", ["loss", "margin"])
def test_parts_of_tokens_sum_to_those_of_the_answer(stages, rank, normalize, measurement):
    options = {"query_rank": rank, "normalize": normalize, "measurement": measurement}
    scorer = InfluenceScorer(stages[1][0], stages[0][0], inverses(stages), **options)
    for parts, whole in summed(scorer):
        assert parts.shape[0] == 4
        torch.testing.assert_close(parts.sum(0), whole, rtol=1e-8, atol=1e-12)
        assert len({round(float(part), 9) for part in parts.sum(1)}) == 4


def test_a_tokens_part_of_low_rank_is_its_vector_in_the_rows_that_the_whole_keeps(stages):
    """Written out: v_t = P_1 P_2 ∇m_t of autograd and dense inverses, times V Vᵀ of the singular vectors of Σ_t v_t."""
    (first, f_pt), (last, f_ft) = stages
    last.model.eval(), first.model.eval()

    def vector(document):
        batch = collate([document])
        loss = last.objective.losses(last.objective.outputs(last.model, batch), batch).sum()
        gradients = dense_gradients(last.model, last.tracked, loss)
        P = {n: dense_inverse(f_pt[n], 0.02) @ dense_inverse(f_ft[n], 0.04) for n in gradients}
        return {n: (P[n] @ g.flatten()).view_as(g) for n, g in gradients.items()}

    parts = [vector(token) for token in TOKENS]
    scorer = InfluenceScorer(last, first, inverses(stages), query_rank=2)
    found = [tokens.sum(1) for tokens, _ in summed(scorer)]
    biased = {module.name: module.bias for module in first.tracked}
    for row, text in enumerate(alone(TEXTS)):
        loss = first.objective.losses(first.objective.outputs(first.model, text), text).sum()
        expected = torch.zeros(4, dtype=torch.float64)
        for n, g in dense_gradients(first.model, first.tracked, loss).items():
            split = -1 if biased[n] else None
            V = torch.linalg.svd(sum(part[n] for part in parts)[:, :split], full_matrices=False)[2][:2].T
            for number, part in enumerate(parts):
                expected[number] += ((part[n][:, :split] @ V @ V.T) * g[:, :split]).sum()
                if biased[n]:
                    expected[number] += part[n][:, -1] @ g[:, -1]
        torch.testing.assert_close(found[row], expected, rtol=1e-7, atol=1e-12)


def test_segments_and_inverses_that_mix_modules_are_split_as_well(stages):
    (one, f_one), (two, f_two) = stages
    accumulated = [EKFAC(f_one, Accumulation(40.0)), EKFAC(f_two, Accumulation(30.0))]
    segmented = SegmentedScorer(one, [one, two], accumulated, [EKFAC(f_two, Decay(30.0))], query_rank=2)
    mixed = InfluenceScorer(two, one, [Arnoldi(Mixed(), one.tracked, 0.1, top=3, iterations=3)])
    for scorer in (segmented, mixed):
        assert why_not_split(scorer) is None
        for parts, whole in summed(scorer):
            torch.testing.assert_close(parts.sum(0), whole, rtol=1e-8, atol=1e-12)


class Mixed:
    """A symmetric positive operator that mixes all modules."""

    def matvec(self, vectors):
        flat = torch.cat([V.flatten(1) for V in vectors.values()], 1)
        weights = torch.linspace(1, 2, flat.shape[1], dtype=flat.dtype)
        mixed = flat * weights + 3 * flat.mean(1, keepdim=True)
        sizes = [V[0].numel() for V in vectors.values()]
        parts = mixed.split(sizes, 1)
        return {name: part.reshape(V.shape) for part, (name, V) in zip(parts, vectors.items(), strict=True)}


def test_what_is_not_split_says_why(stages):
    (side, _), _ = stages
    solved = InfluenceScorer(side, side, [CG(None, side.tracked, 0.1)])
    assert "each token of the answer would take a run of the solver" in why_not_split(solved)
    assert "not known to be a sum" in why_not_split(
        InfluenceScorer(side, side, measurement=lambda outputs, batch: None)
    )
    assert "not taken apart" in why_not_split(LoGraScorer(side, side))
