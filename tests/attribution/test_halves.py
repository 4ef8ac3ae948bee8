"""Means over models moved towards random halves, against weights moved by hand and dense inverses, in float64."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import alone, dense_gradients, documents, tiny_lm
from test_factors_dense import fitted
from test_influence import dense_inverse
from transformers import GPT2Config, GPT2LMHeadModel

from msif import MsifError
from msif.attribution.damping import Damping
from msif.attribution.gradients import Side
from msif.attribution.halves import Halves, HalvesScorer, as_halves
from msif.attribution.inverses import IHVP
from msif.attribution.moves import moved_side, of_half
from msif.attribution.stages import FittedStage, build_scorer
from msif.curvature.cg import Damped
from msif.curvature.ggn import GGN
from msif.curvature.residency import weight_bytes
from msif.data.documents import collate
from msif.models.blocks import moved_parameters
from msif.models.objectives import CausalLM
from msif.models.select import track_modules

TEXTS = documents([6, 4, 9], seed=4)
QUERIES = documents([5, 7], seed=8)
TRAINED_ON = documents([6, 8, 4, 5, 7, 6], seed=3)
TAU, STEP = 30.0, 0.5
HALVES = Halves(4, STEP, seed=1)


def stage_of(model, modules="layers"):
    lm = CausalLM()
    tracked = track_modules(model, modules)
    data = [collate(TRAINED_ON[:4]), collate(TRAINED_ON[4:])]
    tau = {module.name: torch.full((len(module.blocks),), TAU).double() for module in tracked}
    return FittedStage(Side(model, tracked, lm), fitted(model, tracked, lm, data)[2], tau, data)


@pytest.fixture(scope="module")
def stages():
    return stage_of(tiny_lm(0)), stage_of(tiny_lm(1))


def gradients(side, model, texts):
    """Of each document on its own, by autograd."""
    model.eval()
    losses = (side.objective.losses(side.objective.outputs(model, text), text) for text in alone(texts))
    return [dense_gradients(model, side.tracked, loss.sum()) for loss in losses]


def add(model, module, change):
    """By hand."""
    inner = model.get_submodule(module.path)
    weight = inner.weight.data.T if type(inner).__name__ == "Conv1D" else inner.weight.data
    weight += change[:, : module.d_in]
    if module.bias:
        inner.bias.data += change[:, -1]


def moved_by_hand(first, models, outside):
    """Copies of the models without the sequences outside a half."""
    side, factors = first.side, first.factors
    own = gradients(side, side.model, TRAINED_ON)
    tokens = sum(len(text) - 1 for text in TRAINED_ON)
    changes = {}
    for module in side.tracked:
        total = sum(g[module.name] for g, out in zip(own, outside, strict=True) if out) / tokens
        inverse = dense_inverse(factors[module.name], 1 / TAU)
        changes[module.name] = STEP * (inverse @ total.flatten()).view_as(total)
    copies = [copy.deepcopy(model) for model in models]
    for model in copies:
        for module in side.tracked:
            add(model, module, changes[module.name])
    return copies


def by_hand(first, last, lambdas):
    """(Q, N) from dense inverses of the models as they are, at gradients of the moved ones."""
    total, outside = 0, HALVES.left_out(torch.arange(len(TRAINED_ON)))
    for row in outside.tolist():
        pretrained, finetuned = moved_by_hand(first, [first.side.model, last.side.model], row)
        asked, scored = gradients(last.side, finetuned, QUERIES), gradients(first.side, pretrained, TEXTS)
        for name in (module.name for module in first.side.tracked):
            inverse = dense_inverse(first.factors[name], lambdas[0])
            if len(lambdas) > 1:
                inverse = dense_inverse(last.factors[name], lambdas[1]) @ inverse
            left, right = (torch.stack([g[name].flatten() for g in own]) for own in (asked, scored))
            total = total + left @ inverse @ right.T
    return total / len(outside)


def test_two_stages_are_moved_by_one_displacement_and_scored_by_their_own_inverses(stages):
    first, last = stages
    scorer = build_scorer("multi-stage", first, last, Damping(0.02, alpha=0.03), halves=HALVES)
    before = [model.get_submodule("gpt_neox.layers.0.mlp.dense_h_to_4h").weight.clone() for model in models_of(stages)]
    found = scorer.score([collate(QUERIES)], [collate(TEXTS)]).values
    np.testing.assert_allclose(found, by_hand(first, last, (0.02, 0.05)), rtol=1e-7)
    plain = build_scorer("multi-stage", first, last, Damping(0.02, alpha=0.03)).score(alone(QUERIES), alone(TEXTS))
    assert np.abs(found / plain.values - 1).max() > 0.05  # it is no small move
    for model, weight in zip(models_of(stages), before, strict=True):  # and the models stay as they are
        assert torch.equal(model.get_submodule("gpt_neox.layers.0.mlp.dense_h_to_4h").weight, weight)


def models_of(stages):
    return [stage.side.model for stage in stages]


def test_a_single_stage_is_moved_once(stages):
    first, _ = stages
    scorer = build_scorer("single-stage", first, None, Damping(0.02), halves=HALVES)
    found = scorer.score(alone(QUERIES), [collate(TEXTS)]).values
    np.testing.assert_allclose(found, by_hand(first, first, (0.02,)), rtol=1e-7)
    assert all(part.query_side.model is part.candidate_side.model for part in scorer.parts)


def test_weights_that_are_stored_transposed_or_tied_are_moved_everywhere():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config).double()
    stage = stage_of(model, "everything")
    scorer = build_scorer("single-stage", stage, None, Damping(0.02), halves=Halves(2, STEP))
    changes = scorer.displacements()
    scorer.move(changes)
    for number, part in enumerate(scorer.parts):
        copied = part.candidate_side.model
        assert copied.lm_head.weight is copied.transformer.wte.weight
        for module in stage.side.tracked:
            own, new = model.get_submodule(module.path), copied.get_submodule(module.path)
            change = changes[module.name][number]
            weight = change[:, : module.d_in]
            key = module.uses[0].key
            weight = weight.T if type(own).__name__ == "Conv1D" else weight.reshape(getattr(own, key).shape)
            torch.testing.assert_close(getattr(new, key), getattr(own, key) + weight)
            if module.bias:
                torch.testing.assert_close(new.bias, own.bias + change[:, -1])


def test_sums_of_16_bit_weights_are_taken_in_float32():
    model = tiny_lm(dtype=torch.bfloat16)
    module = next(m for m in track_modules(model, "layers") if m.bias)
    change = torch.randn(module.shape) * 0.01
    (weight, moved), (bias, moved_bias) = moved_parameters(model, module, change)
    assert moved.dtype == moved_bias.dtype == torch.bfloat16
    assert torch.equal(moved, (weight.float() + change[:, : module.d_in]).bfloat16())
    assert torch.equal(moved_bias, (bias.float() + change[:, -1]).bfloat16())
    assert not torch.equal(moved, weight + change[:, : module.d_in].bfloat16())


def test_parts_sum_to_scores_and_self_influence_is_the_mean(stages):
    first, last = stages
    scorer = build_scorer("multi-stage", first, last, Damping(0.02, alpha=0.03), halves=HALVES, normalize="unit")
    vectors = scorer.query_vectors([collate(QUERIES)])
    scores = scorer.score_vectors(vectors, [collate(TEXTS)]).values
    for number, parts in enumerate(scorer.explain(vectors, [collate(TEXTS)])):
        torch.testing.assert_close(parts.tokens.sum(-1), torch.from_numpy(scores[:, number]))
        torch.testing.assert_close(parts.blocks.sum(-1), torch.from_numpy(scores[:, number]))
    each = [part.self_influence([collate(TEXTS)]) for part in scorer.parts]
    anew = build_scorer("multi-stage", first, last, Damping(0.02, alpha=0.03), halves=HALVES)
    torch.testing.assert_close(anew.self_influence([collate(TEXTS)]), torch.stack(each).mean(0))
    torch.testing.assert_close(scorer.self_influence([collate(TEXTS)]), torch.stack(each).mean(0))
    assert not torch.allclose(each[0], each[1])


def test_every_two_halves_share_out_all_and_a_row_decides_for_itself():
    outside = Halves(6, seed=5).left_out(torch.arange(400))
    assert outside.shape == (6, 400)
    assert bool((outside[0::2] ^ outside[1::2]).all())
    assert all(150 < int(row.sum()) < 250 for row in outside)
    assert not torch.equal(outside[0], outside[2])
    few = torch.tensor([7, 3, 399])
    assert torch.equal(Halves(6, seed=5).left_out(few), outside[:, few])
    assert not torch.equal(Halves(6, seed=6).left_out(torch.arange(400)), outside)


def test_one_is_the_middle_of_all_halves(stages):
    first, _ = stages
    build = lambda halves: build_scorer("single-stage", first, None, Damping(0.02), halves=halves)  # noqa: E731
    one, two = build(Halves(1, STEP)).displacements(), build(Halves(2, STEP, seed=3)).displacements()
    for name, own in one.items():
        assert own.shape[0] == 1
        torch.testing.assert_close(own[0], two[name].mean(0))
    scorer = build(Halves(1, STEP))
    assert len(scorer.cost().models) == 0
    found = scorer.score(alone(QUERIES), alone(TEXTS)).values
    assert np.abs(found / build(Halves(2, STEP)).score(alone(QUERIES), alone(TEXTS)).values - 1).max() > 1e-3


def test_a_batch_without_a_member_adds_nothing_and_an_order_changes_nothing(stages):
    first, _ = stages
    whole = build_scorer("single-stage", first, None, Damping(0.02), halves=HALVES).displacements()
    one_by_one = FittedStage(first.side, first.factors, first.tau, alone(TRAINED_ON)[::-1])
    again = build_scorer("single-stage", one_by_one, None, Damping(0.02), halves=HALVES).displacements()
    for name, own in whole.items():
        assert own.shape[0] == 4
        torch.testing.assert_close(again[name], own, rtol=1e-9, atol=1e-12)


def test_memory_is_told_before_models_are_copied(stages):
    first, last = stages
    for method, models in (("multi-stage", 2), ("single-stage", 1)):
        scorer = build_scorer(method, first, last, Damping(0.02, alpha=0.03), halves=HALVES)
        cost = scorer.cost()
        held = [part.candidate_side.model for part in scorer.parts] + [part.query_side.model for part in scorer.parts]
        originals = [first.side.model, last.side.model][:models]
        assert weight_bytes([*originals, *held]) == weight_bytes(originals)  # they share all until they are moved
        assert len(cost.models) == HALVES.count - 1
        scorer.query_vectors([collate(QUERIES)])
        assert weight_bytes([*originals, *held]) == weight_bytes(originals) + cost.copied


@pytest.mark.parametrize("kind", ["cg", "ekfac-cg"])
def test_a_solver_solves_at_the_moved_models(stages, kind):
    """And foretells them by its own inverse."""
    stages = [replace(stage, batches=[collate(TRAINED_ON[:4]), collate(TRAINED_ON[4:])]) for stage in stages]
    first, last = stages
    ihvp, damping = IHVP(kind, iterations=400, tolerance=1e-8), Damping(0.3, alpha=0.2)
    scorer = build_scorer("multi-stage", first, last, damping, ihvp, halves=Halves(2, 1.0, seed=1))
    found = scorer.score(alone(QUERIES), [collate(TEXTS)]).values
    operator = Damped(GGN(first.side.model, first.side.tracked, CausalLM(), first.batches), first.side.tracked, 1 / TAU)
    changes = scorer.displacements()
    own, tokens = gradients(first.side, first.side.model, TRAINED_ON), sum(len(text) - 1 for text in TRAINED_ON)
    outside = Halves(2, seed=1).left_out(torch.arange(len(TRAINED_ON)))
    for name, product in operator.matvec(changes).items():
        pulls = [sum(g[name] for g, out in zip(own, row, strict=True) if out) / tokens for row in outside.tolist()]
        torch.testing.assert_close(product, torch.stack(pulls), rtol=1e-6, atol=1e-9)
    expected = 0
    for number in range(2):
        change = of_half(changes, number)
        moved = [replace(s, side=moved_side(s.side, change)) for s in stages]
        one = build_scorer("multi-stage", *moved, damping, ihvp).score(alone(QUERIES), [collate(TEXTS)])
        expected = expected + one.values / 2
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    plain = build_scorer("multi-stage", *stages, damping, ihvp).score(alone(QUERIES), [collate(TEXTS)]).values
    assert np.abs(found / plain - 1).max() > 0.05


@pytest.mark.parametrize("given", [{"noise": "evidence"}, {"noise": "1"}, {"step": "Auto"}])
def test_steps_and_noise_are_numbers(given):
    with pytest.raises(MsifError, match="give a step above 0"):
        Halves(**given)


@pytest.mark.parametrize("given", [{"count": 4.0}, {"count": True}, {"seed": -1}, {"seed": 0.5}, {"count": "4"}])
def test_halves_are_of_integers(given):
    with pytest.raises(MsifError, match="give integers"):
        Halves(**given)


@pytest.mark.parametrize("text", ["3", "0", "-2", "many", "4:", "4:0", "4:-1", "4:nan", "4:inf", "4:x", "2.5", ""])
@pytest.mark.parametrize("end", ["", ":loss", "%"])
def test_what_is_no_number_of_halves_is_refused(text, end):
    with pytest.raises(MsifError, match=r"halves"):
        as_halves(text + end)


WRITTEN_WRONG = ("4%", "4:0.3%", "loss", "4:loss:0.3", "4:loss:loss", "4:Loss", ":loss")
NOISE_WRONG = ("4:0:0", "4:1:-1", "4:1:nan", "4:1:inf", "4:1:", "4:1:1:1", "4::1", "4:0.3:Auto", "4:Auto", "auto")


@pytest.mark.parametrize("text", [*WRITTEN_WRONG, *NOISE_WRONG])
def test_what_no_halves_are_written_as_is_refused(text):
    with pytest.raises(MsifError, match=r"halves"):
        as_halves(text)


def test_what_is_written():
    assert as_halves("4") == as_halves(4) == Halves(4, "auto") == Halves()
    assert as_halves("8:0.5") == as_halves(Halves(8, 0.5)) == Halves(8, 0.5)
    assert as_halves("8:0:1") == Halves(8, 0, noise=1) and as_halves("4:1:0") == Halves(4, 1)
    assert as_halves("4:0:auto") == Halves(4, 0, noise="auto")
    for text in ("4:auto", "4:auto:auto", "4:0.3", "1:0.7", "8:1.5", "4:0:1", "2:1:0.5", "4:0.3:auto"):
        assert str(as_halves(text)) == text


def test_halves_need_a_training_and_its_data(stages):
    first, last = stages
    for bare in (FittedStage(first.side, first.factors, first.tau), FittedStage(first.side, first.factors, None, [1])):
        with pytest.raises(MsifError, match=r"τ of the first stage's training and its data"):
            build_scorer("multi-stage", bare, last, Damping(0.02), halves=HALVES)
    with pytest.raises(MsifError, match="no option 'halves'"):
        build_scorer("gdp", first, last, halves=HALVES)


@pytest.mark.parametrize(("dtype", "advice"), [(torch.bfloat16, "use --dtype float32"), (torch.float64, "is τ of the")])
def test_a_move_that_weights_do_not_hold_is_told(stages, caplog, dtype, advice):
    first, _ = stages
    model = copy.deepcopy(first.side.model).to(dtype)
    narrow = replace(first, side=replace(first.side, model=model))
    scorer = build_scorer("single-stage", narrow, None, Damping(0.02), halves=Halves(2, 1e-18))
    assert isinstance(scorer, HalvesScorer)
    scorer.query_vectors([collate(QUERIES)])
    assert f"weights of {dtype} hold little of so small a move: {advice}" in caplog.text
