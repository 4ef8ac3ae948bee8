"""How far models may be moved, by a loss that is taken by hand."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import alone, tiny_lm
from test_halves import QUERIES, TRAINED_ON, add, stage_of, stages  # noqa: F401

from msif.attribution.damping import Damping
from msif.attribution.halves import Halves
from msif.attribution.inverses import IHVP
from msif.attribution.stages import build_scorer
from msif.attribution.trust import BORNE, loss_and_chance, shorten, tell_lost
from msif.data.documents import collate
from msif.models.objectives import CausalLM, Regression


@pytest.mark.parametrize(("step", "told"), [(1e6, True), (0.1, False)])
def test_a_move_that_is_too_long_is_told(stages, caplog, step, told):  # noqa: F811
    first, _ = stages
    build_scorer("single-stage", first, None, Damping(0.02), halves=Halves(2, step)).displacements()
    assert ("further than one step foretells: give a smaller one, such as 2:100000" in caplog.text) == told


@pytest.mark.parametrize(("step", "told"), [(0.0, False), (0.1, False), (1e6, True)])
def test_noise_is_no_step(stages, caplog, step, told):  # noqa: F811
    first, _ = stages
    build_scorer("single-stage", first, None, Damping(0.02), halves=Halves(2, step, noise=3.0)).displacements()
    assert ("further than one step foretells: give a smaller one, such as 2:100000:3" in caplog.text) == told


@pytest.mark.parametrize(("noise", "told"), [(0.1, False), (1000.0, True)])
def test_models_that_know_nothing_any_more_are_told(caplog, noise, told):
    first, last = (stage_of(tiny_lm(seed), "maps") for seed in (0, 1))
    for method, given in (("single-stage", (first, None)), ("multi-stage", (first, last))):
        caplog.clear()
        build_scorer(method, *given, Damping(0.02), halves=Halves(2, 0, noise=noise)).query_vectors([collate(QUERIES)])
        assert ("answers are less likely than by chance at the moved models" in caplog.text) == told
    side, texts = last.side, alone(QUERIES)
    side.model.eval()
    with torch.no_grad():
        loss = sum(side.objective.losses(side.objective.outputs(side.model, text), text).sum() for text in texts)
    tokens = sum(int(side.objective.supervised_counts(text).sum()) for text in texts)
    own, chance = float(loss) / tokens, np.log(side.model.config.vocab_size)
    assert not told or f"{chance:.3g} by chance and {own:.3g} at the model itself" in caplog.text


def test_only_a_loss_over_classes_has_a_guess_to_be_held_against():
    tell_lost([], SimpleNamespace(objective=Regression(0, 1)), None)


@pytest.mark.parametrize(
    ("moved", "own", "told"),
    [((2.0,), 0.5, False), ((1.0, 9.0), 0.5, True), ((9.0,), 5.0, False), ((11.0,), 5.0, True)],
)
def test_the_worst_of_the_models_is_held_against_chance_and_twice_the_models_own_loss(
    monkeypatch, caplog, moved, own, told
):
    monkeypatch.setattr("msif.attribution.trust.loss_and_chance", lambda loss, _: (loss.at, 2.4))
    sides = [SimpleNamespace(at=loss) for loss in moved]
    tell_lost(sides, SimpleNamespace(objective=CausalLM(), at=own), [])
    assert ("less likely than by chance" in caplog.text) == told


def test_a_loss_is_of_a_model_that_does_not_drop_out(stages):  # noqa: F811
    side = stages[1].side
    side.model.train()
    losses = [loss_and_chance(side, [collate(QUERIES)]) for _ in range(2)]
    assert losses[0] == losses[1] and side.model.training


def loss_by_hand(stage, change=None):
    """Mean loss of the stage's data at its model, moved by one half's displacement."""
    model = copy.deepcopy(stage.side.model).eval()
    if change is not None:
        for module in stage.side.tracked:
            add(model, module, change[module.name])
    total = count = 0
    for text in alone(TRAINED_ON):
        ids = text.input_ids
        with torch.no_grad():
            total += torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:].long(), reduction="sum")
        count += ids.shape[1] - 1
    return float(total) / count


def displacements(stage, step):
    return build_scorer("single-stage", stage, None, Damping(0.02), halves=Halves(2, step, seed=1)).displacements()


@pytest.mark.parametrize("longer", [1.0, 3.0, 30.0])
def test_a_step_is_as_long_as_models_bear(caplog, longer):
    """All of it where they do, or else the first half, quarter, ... that loses no more than may be lost."""
    stage = stage_of(tiny_lm(0), "maps")
    faint = {name: replace(one, Lambda=one.Lambda / 1e3) for name, one in stage.factors.items()}
    stage = replace(stage, factors=faint, tau={name: longer * tau for name, tau in stage.tau.items()})
    whole, found = displacements(stage, 0.3), displacements(stage, "auto")
    share, most = 1.0, loss_by_hand(stage) + BORNE * math.log(11)
    while loss_by_hand(stage, {name: share * V[0] for name, V in whole.items()}) > most:
        share /= 2
    assert (share == 1) == (longer == 1) and share > 2**-12
    for name, own in found.items():
        torch.testing.assert_close(own, share * whole[name])
    told = f"models bear {share:.2g} of the step towards halves: their loss is"
    assert (told in caplog.text) == (share < 1)
    if share < 1:
        assert f"and {loss_by_hand(stage):.3g} at the model itself" in caplog.text


def test_a_move_to_no_number_is_shortened_and_told(stages, caplog):  # noqa: F811
    side = stages[0].side
    V = {module.name: torch.full((2, *module.shape), torch.inf, dtype=torch.float64) for module in side.tracked}
    shorten(side, [collate(TRAINED_ON)], V)
    assert "their loss is nan" in caplog.text


def test_a_regression_has_no_guess_to_be_held_against():
    V = {"a": torch.ones(2, 1, 1)}
    shorten(SimpleNamespace(objective=Regression(0, 1)), None, V)
    assert V["a"].sum() == 2


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_solver_shortens_its_own_step(stages, noise):  # noqa: F811
    stage = replace(stages[0], batches=[collate(TRAINED_ON[:4]), collate(TRAINED_ON[4:])])
    solver = IHVP("ekfac-cg", iterations=400, tolerance=1e-10)
    found, given = (
        build_scorer("single-stage", stage, None, Damping(0.05), solver, halves=Halves(2, step, 1, noise))
        for step in ("auto", 0.3)
    )
    expected = given.displacements()
    for name, own in found.displacements().items():  # of models that bear it
        torch.testing.assert_close(own, expected[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("own", [0.2, 1.0, 9.0])
def test_three_tenths_of_what_a_guess_loses_may_be_lost(stages, monkeypatch, own):  # noqa: F811
    """Whatever the model itself loses."""
    side, tracked = stages[0].side, stages[0].side.tracked[0].name
    V = {module.name: torch.ones(2, *module.shape) for module in side.tracked}
    moved = lambda side, change: replace(side, model=float(change[tracked].mean()))  # noqa: E731
    monkeypatch.setattr("msif.attribution.trust.moved_side", moved)
    loss = lambda one, _: (own if one is side else own + 40 * one.model, 6.0)  # noqa: E731
    monkeypatch.setattr("msif.attribution.trust.loss_and_chance", loss)
    shorten(side, [], V)
    assert all(bool((one == 2**-5).all()) for one in V.values()) and 40 * 2**-5 <= 0.3 * 6 < 40 * 2**-4
