"""Solvers as stages: multi-stage scores with the exact damped curvature of both models, against dense solves."""

import numpy as np
import pytest
import torch
from helpers import alone, dense_gradients, documents, tiny_lm
from test_factors_dense import fitted
from test_ggn import dense_ggn

from msif.attribution.damping import Damping
from msif.attribution.gradients import Side
from msif.attribution.inverses import IHVP
from msif.attribution.stages import FittedStage, build_scorer
from msif.curvature.filters import DampedInverse
from msif.data.documents import collate
from msif.errors import MsifError
from msif.models.objectives import CausalLM
from msif.models.select import track_modules

DAMPING, ALPHA = 0.05, 0.1


@pytest.fixture(scope="module")
def stages():
    result = []
    for seed in (0, 1):
        model, objective = tiny_lm(seed), CausalLM()
        tracked = track_modules(model, "mlp")
        data = [collate(documents([6, 8, 7], seed=seed)), collate(documents([5], seed=seed + 9))]
        _, _, factors = fitted(model, tracked, objective, data)
        result.append(FittedStage(Side(model, tracked, objective), factors, batches=data))
    return result


def gradients(side, batch):
    side.model.eval()
    loss = side.objective.losses(side.objective.outputs(side.model, batch), batch).sum()
    return torch.cat([g.flatten() for g in dense_gradients(side.model, side.tracked, loss).values()])


@pytest.mark.parametrize("kind", ["cg", "ekfac-cg"])
def test_multi_stage_by_conjugate_gradients_equals_dense_solves_of_both_stages(stages, kind):
    pretrained, finetuned = stages
    queries, texts = alone(documents([5], seed=4)), alone(documents([4, 6, 5], seed=5))
    ihvp = IHVP(kind, iterations=2000, tolerance=1e-9)
    scorer = build_scorer("multi-stage", pretrained, finetuned, Damping(DAMPING, alpha=ALPHA), ihvp)
    H_pt, H_ft = (dense_ggn(s.side.model, s.side.tracked, s.side.objective, s.batches) for s in stages)
    identity = torch.eye(len(H_pt)).double()
    v = torch.linalg.solve(H_ft + (DAMPING + ALPHA) * identity, gradients(finetuned.side, queries[0]))
    v = torch.linalg.solve(H_pt + DAMPING * identity, v)
    expected = [float(v @ gradients(pretrained.side, text)) for text in texts]
    np.testing.assert_allclose(scorer.score(queries, texts).values[0], expected, rtol=1e-4)


def test_relative_damping_means_the_same_for_a_solver(stages):
    """λ = scale · mean(Λ) of each block, as EK-FAC has it."""
    _, stage = stages
    filter = DampedInverse(damping_scale=0.1)
    solver = IHVP("cg").build(stage.side, stage.factors, filter, stage.batches)
    for name, f in stage.factors.items():
        torch.testing.assert_close(solver.damped.damping[name], 0.1 * f.Lambda.mean((1, 2)))


def test_refusals(stages):
    _, stage = stages
    with pytest.raises(MsifError, match="no inverse 'newton'"):
        IHVP("newton")
    with pytest.raises(MsifError, match="own data"):
        IHVP("cg").build(stage.side, stage.factors, DampedInverse(0.1))
    with pytest.raises(MsifError, match="positions"):
        IHVP("kfac").build(stage.side, stage.factors, DampedInverse(0.1))
