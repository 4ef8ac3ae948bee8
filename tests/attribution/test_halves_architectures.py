"""Weights are moved where gradients are taken, in every architecture: moves change the loss as gradients say."""

import pytest
import torch
from architectures import ARCHITECTURES, tiny_model
from helpers import documents, spread

from msif.attribution.gradients import Side, query_gradients
from msif.attribution.halves import Halves
from msif.attribution.stages import FittedStage, build_scorer
from msif.curvature.vectors import dot
from msif.data.documents import collate
from msif.models.objectives import CausalLM
from msif.models.select import track_modules

QUERY = documents([7], seed=8)
STEP = 1e-3  # in float32 smaller changes are noise


def loss(model):
    model.eval()
    batch, objective = collate(QUERY), CausalLM()
    with torch.no_grad():
        return objective.losses(objective.outputs(model, batch), batch).double().sum().item()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_moves_there_and_back_change_the_loss_as_its_gradient_says(name):
    model = spread(tiny_model(name))
    side = Side(model, track_modules(model, "everything"), CausalLM())
    stage = FittedStage(side, {}, {}, [collate(documents([6]))])
    scorer = build_scorer("single-stage", stage, None, halves=Halves(2, 0.3))
    gradient = query_gradients(side, [collate(QUERY)])
    norm = float(dot(gradient, gradient).sqrt())
    there = {key: V * STEP / norm for key, V in gradient.items()}
    before = loss(model)
    scorer.move({key: torch.cat([V, -V]) for key, V in there.items()})
    up, down = (loss(part.candidate_side.model) for part in scorer.parts)
    assert (up - down) / 2 == pytest.approx(STEP * norm, rel=0.03)
    assert loss(model) == before
