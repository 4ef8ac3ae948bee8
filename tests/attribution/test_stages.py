"""Damping of the stages, methods by name, and what they refuse."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import alone, documents, tiny_lm
from test_factors_dense import fitted

from msif.attribution.cka import CKAScorer
from msif.attribution.damping import Damping
from msif.attribution.gradients import Side, query_gradients
from msif.attribution.logra import LoGraScorer
from msif.attribution.methods import INDEXED, METHODS, READ_BY
from msif.attribution.random_order import RandomScorer
from msif.attribution.representation import RepresentationScorer
from msif.attribution.scorers import EnsembleScorer, InfluenceScorer
from msif.attribution.scoring import QueryVectors, compress
from msif.attribution.stages import FittedStage, build_scorer
from msif.attribution.trak import TRAKScorer
from msif.curvature.filters import Accumulation, DampedInverse, Decay
from msif.curvature.preconditioners import EKFAC
from msif.data.documents import collate
from msif.errors import MsifError
from msif.models.objectives import CausalLM
from msif.models.select import track_modules

Lambda = torch.rand(2, 3, 4, dtype=torch.float64)
TAU = {"m": torch.tensor([10.0, 40.0], dtype=torch.float64)}


@pytest.fixture(scope="module")
def stages():
    result = []
    for seed in (0, 1):
        model, objective = tiny_lm(seed), CausalLM()
        tracked = track_modules(model, "mlp")
        _, _, factors = fitted(model, tracked, objective, [collate(documents([6, 8, 4], seed=seed))])
        result.append(FittedStage(Side(model, tracked, objective), factors))
    return result


def expected(shift):
    shift = torch.as_tensor(shift, dtype=torch.float64)
    return 1 / (Lambda + (shift.view(-1, 1, 1) if shift.dim() else shift))


@pytest.mark.parametrize(
    ("damping", "first", "later"),
    [
        (Damping(0.5), 0.5, 0.5),
        (Damping(0.5, alpha=0.25), 0.5, 0.75),
        (Damping("auto"), 1 / TAU["m"], 1 / TAU["m"]),
        (Damping("auto", alpha=0.25), 1 / TAU["m"], 0.25),
        (Damping("auto", alpha=0.0), 1 / TAU["m"], 1 / TAU["m"]),
        (Damping(0.5, alpha="auto"), 0.5, 0.5 + 1 / TAU["m"]),
        (Damping("auto:3"), 3 / TAU["m"], 3 / TAU["m"]),
        (Damping("auto:3", alpha="auto"), 3 / TAU["m"], 1 / TAU["m"]),
        (Damping("auto", alpha="auto:0.5"), 1 / TAU["m"], 0.5 / TAU["m"]),
        (Damping("auto:3", alpha=0), 3 / TAU["m"], 3 / TAU["m"]),
        (Damping(0.5, alpha="auto:10"), 0.5, 0.5 + 10 / TAU["m"]),
    ],
)
def test_damping_of_the_first_and_of_a_later_stage(damping, first, later):
    torch.testing.assert_close(damping.first(TAU)(Lambda, "m"), expected(first))
    torch.testing.assert_close(damping.later(TAU)(Lambda, "m"), expected(later))


def test_relative_damping_is_per_block_and_a_dead_block_stays_zero():
    values = torch.cat([Lambda[:1], torch.zeros(1, 3, 4).double()])
    result = DampedInverse(damping_scale=0.1)(values, "m")
    torch.testing.assert_close(result[0], 1 / (values[0] + 0.1 * values[0].mean()))
    assert torch.all(result[1] == 0)


def test_training_is_asked_for_only_where_it_is_used():
    cases = {
        Damping(0.5): (None, None),
        Damping("auto"): ("auto", "auto"),
        Damping("evidence:2"): ("evidence", "evidence"),
        Damping("auto", alpha=0.3): ("auto", None),
        Damping("auto:2", alpha=0): ("auto", "auto"),
        Damping("auto:2", alpha="evidence:3"): ("auto", "evidence"),
        Damping(0.5, alpha="auto"): (None, "auto"),
        Damping(0.5, alpha=0): (None, None),
    }
    for damping, kinds in cases.items():
        assert (damping.scale_of(later=False), damping.scale_of(later=True)) == kinds
    with pytest.raises(MsifError, match="learning-rate-sum"):
        Damping("auto").first(None)


def test_methods_by_name_are_what_they_say(stages):
    pretrained, finetuned = stages
    queries, texts = alone(documents([5], seed=4)), [collate(documents([4, 6, 5], seed=5))]
    damping, index = Damping(0.05, alpha=0.02), [collate(documents([7, 4, 8], seed=6))]
    by_hand = {
        "multi-stage": InfluenceScorer(
            finetuned.side,
            pretrained.side,
            [EKFAC(pretrained.factors, DampedInverse(0.05)), EKFAC(finetuned.factors, DampedInverse(0.05, alpha=0.02))],
        ),
        "single-stage": InfluenceScorer(
            pretrained.side, pretrained.side, [EKFAC(pretrained.factors, DampedInverse(0.05))]
        ),
        "gdp": InfluenceScorer(finetuned.side, pretrained.side),
        "cosine": InfluenceScorer(finetuned.side, pretrained.side, normalize="both"),
        "cka": CKAScorer(finetuned.side, pretrained.side),
        "trak": TRAKScorer([(finetuned.side, pretrained.side)], damping=0.05, kernel_data=index),
        "logra": LoGraScorer(finetuned.side, pretrained.side, damping=0.05, curvature_data=index),
        "source": InfluenceScorer(
            finetuned.side,
            pretrained.side,
            [EKFAC(pretrained.factors, Accumulation(40.0)), EKFAC(finetuned.factors, Decay(7.0))],
        ),
        "representation": RepresentationScorer(finetuned.side),
        "random": RandomScorer(finetuned.side, pretrained.side),
    }
    assert by_hand.keys() == set(METHODS) - set(INDEXED)
    tau = [{m.name: torch.full((len(m.blocks),), value) for m in pretrained.side.tracked} for value in (40.0, 7.0)]
    pretrained, finetuned = replace(pretrained, batches=index, tau=tau[0]), replace(finetuned, tau=tau[1])
    for name, scorer in by_hand.items():
        got = build_scorer(name, pretrained, finetuned, damping).score(queries, texts).values
        torch.testing.assert_close(torch.from_numpy(got), torch.from_numpy(scorer.score(queries, texts).values))


def test_the_order_of_the_stages_matters(stages):
    """The inverses do not commute: a score that forgot one of them, or their order, would differ."""
    pretrained, finetuned = stages
    queries, texts = alone(documents([5], seed=4)), [collate(documents([4, 6, 5], seed=5))]
    P, F = EKFAC(pretrained.factors, DampedInverse(1e-3)), EKFAC(finetuned.factors, DampedInverse(1e-3))
    sides = finetuned.side, pretrained.side
    values = [InfluenceScorer(*sides, s).score(queries, texts).values for s in ([P, F], [F, P], [P], [F], [])]
    for i, one in enumerate(values):
        for other in values[i + 1 :]:
            assert abs(one / one.std() - other / other.std()).max() > 1e-3


def test_refusals(stages):
    pretrained, finetuned = stages
    queries, texts = alone(documents([5, 6], seed=4)), [collate(documents([4, 6, 5], seed=5))]
    with pytest.raises(MsifError, match="no method"):
        build_scorer("tracin", pretrained, finetuned)
    with pytest.raises(MsifError, match="needs both"):
        build_scorer("multi-stage", pretrained, None)
    with pytest.raises(MsifError, match="finetuned-factors"):
        build_scorer("multi-stage", pretrained, FittedStage(finetuned.side))
    with pytest.raises(MsifError, match="give --method trak a number"):
        build_scorer("trak", pretrained, finetuned, Damping("auto"))
    with pytest.raises(MsifError, match="only where the index data are given"):
        build_scorer("logra", pretrained, finetuned).query_vectors(queries)
    scorer = build_scorer("gdp", pretrained, finetuned)
    with pytest.raises(MsifError, match="lists"):
        EnsembleScorer([scorer, scorer]).score(iter(queries), texts)
    with pytest.raises(MsifError, match="each once"):
        query_gradients(finetuned.side, [queries[0], queries[0]])
    with pytest.raises(MsifError, match="no factors for module"):
        EKFAC({}, DampedInverse(0.1)).apply({"x": torch.ones(1, 2, 2)})


def test_a_preconditioner_leaves_its_argument_alone(stages):
    vectors = query_gradients(stages[1].side, alone(documents([5], seed=4)))
    before = {name: V.clone() for name, V in vectors.items()}
    EKFAC(stages[1].factors, DampedInverse(0.1)).apply(vectors)
    assert vectors.keys() == before.keys() and all(torch.equal(vectors[name], before[name]) for name in before)


def test_subspace_iteration_is_as_good_as_the_full_decomposition():
    U, _ = torch.linalg.qr(torch.randn(2, 300, 200).double())
    V, _ = torch.linalg.qr(torch.randn(2, 250, 200).double())
    S = torch.arange(1, 201).double() ** -1.0
    weight = U * S @ V.transpose(1, 2)
    compressed, errors = compress({"m": QueryVectors(weight, None)}, rank=10)
    exact = (S[10:].square().sum() / S.square().sum()).sqrt()
    torch.testing.assert_close(errors, exact.expand(2), rtol=1e-3, atol=0.0)
    lost = (weight - compressed["m"].dense()).square().sum((1, 2)).sqrt() / weight.square().sum((1, 2)).sqrt()
    torch.testing.assert_close(errors, lost, rtol=1e-6, atol=0.0)


def test_options_name_methods_and_flags_that_there_are():
    from msif.influence import parser

    flags = {action.dest for action in parser()._actions}
    assert flags >= READ_BY.keys() and {name for readers in READ_BY.values() for name in readers} <= set(METHODS)


def test_source_is_accumulation_then_decay(stages):
    """In each stage's own eigenbasis, written out for dense matrices."""
    tau = [{m.name: torch.full((len(m.blocks),), value).double() for m in stages[0].side.tracked} for value in (40, 7)]
    first, last = (replace(stage, tau=t) for stage, t in zip(stages, tau, strict=True))
    queries, texts = [collate(documents([5, 7], seed=3, prompt=2))], [collate(documents([6, 4, 9], seed=4))]
    found = build_scorer("source", first, last).score(queries, texts).values
    left, right = query_gradients(last.side, queries), query_gradients(first.side, texts)
    total = torch.zeros(2, 3, dtype=torch.float64)
    for name in left:
        f, g = first.factors[name], last.factors[name]
        kept = g.rotate_back(g.rotate(left[name]) * torch.exp(-7 * g.Lambda))
        filter = torch.where(f.Lambda > 1e-12, -torch.expm1(-40 * f.Lambda) / f.Lambda, 40.0)  # its limit at 0
        accumulated = f.rotate_back(f.rotate(kept) * filter)
        total += accumulated.flatten(1) @ right[name].flatten(1).T
    assert torch.allclose(torch.from_numpy(found), total, rtol=1e-8)
    alone = build_scorer("source", first, None).score(queries, texts).values
    assert alone.shape == (2, 3) and not torch.allclose(torch.from_numpy(alone), total)
    with pytest.raises(MsifError, match="needs τ of each stage's training"):
        build_scorer("source", first, stages[1])


def test_source_in_segments_is_a_sum_over_checkpoints_of_what_later_segments_keep(stages):
    """Two segments of pre-training and two of fine-tuning, each in its own eigenbasis, written out."""
    segments, rates = [], (40, 30, 7, 5)
    for seed, (stage, rate) in enumerate(zip((stages[0], stages[0], stages[1], stages[1]), rates, strict=True)):
        model = tiny_lm(10 + seed)
        tracked = track_modules(model, "mlp")
        _, _, factors = fitted(model, tracked, stage.side.objective, [collate(documents([6, 8, 4], seed=20 + seed))])
        tau = {m.name: torch.full((len(m.blocks),), rate).double() for m in tracked}
        segments.append(FittedStage(Side(model, tracked, stage.side.objective), factors, tau))
    first, last = FittedStage(stages[0].side, segments=segments[:2]), FittedStage(stages[1].side, segments=segments[2:])
    queries, texts = [collate(documents([5, 7], seed=3, prompt=2))], [collate(documents([6, 4, 9], seed=4))]

    def filtered(stage, vectors, of):
        return {n: f.rotate_back(f.rotate(vectors[n]) * of(f.Lambda)) for n, f in stage.factors.items()}

    kept, total = query_gradients(last.side, queries), torch.zeros(2, 3, dtype=torch.float64)
    for number in (3, 2, 1, 0):
        tau = rates[number]
        if number < 2:
            accumulated = filtered(
                segments[number], kept, lambda L, t=tau: torch.where(L > 1e-12, -torch.expm1(-t * L) / L, float(t))
            )
            right = query_gradients(segments[number].side, texts)
            total += sum(accumulated[n].flatten(1) @ right[n].flatten(1).T for n in kept)
        kept = filtered(segments[number], kept, lambda L, t=tau: torch.exp(-t * L))
    scorer = build_scorer("source", first, last)
    assert torch.allclose(torch.from_numpy(scorer.score(queries, texts).values), total, rtol=1e-8)

    vectors = scorer.query_vectors(queries)
    for row, own in enumerate(scorer.explain(vectors, texts)):
        torch.testing.assert_close(own.tokens.sum(1), total[:, row])
        torch.testing.assert_close(own.blocks.sum(1), total[:, row])
    assert [len(part.tokens) for part in scorer.explain(vectors, texts, [1])] == [1, 1, 1]
    whole, parts = scorer.cost(), [part.cost() for part in scorer.parts]
    assert whole.vector == sum(cost.vector for cost in parts) and len(whole.models) == 1
    assert whole.batch(3, 9, 2).multiply_adds == pytest.approx(sum(c.batch(3, 9, 2).multiply_adds for c in parts))
    compressed = build_scorer("source", first, last, query_rank=2)
    compressed.query_vectors(queries)
    assert torch.equal(compressed.rank_errors, torch.stack([part.rank_errors for part in compressed.parts]).amax(0))
    unknown = replace(first, segments=[segments[0], replace(segments[1], tau=None)])
    with pytest.raises(MsifError, match="needs τ of each stage's training"):
        build_scorer("source", unknown, last)


def test_representations_are_means_over_real_tokens_of_the_last_model(stages):
    queries, texts = documents([5, 7], seed=3), documents([6, 4, 9], seed=4)
    scores = build_scorer("representation", *stages).score([collate(queries)], [collate(texts)]).values
    model = stages[1].side.model.eval()

    def mean(document):
        hidden = model.base_model(input_ids=torch.from_numpy(document.input_ids).long()[None]).last_hidden_state
        return hidden[0].mean(0)

    for row, query in enumerate(queries):
        for column, text in enumerate(texts):
            cosine = torch.cosine_similarity(mean(query), mean(text), dim=0)
            assert scores[row, column] == pytest.approx(float(cosine.detach()), abs=1e-5)


def test_a_random_order_depends_on_seed_query_and_row_alone(stages):
    queries, texts = documents([5, 7], seed=3), documents([6, 4, 9], seed=4)
    scores = build_scorer("random", *stages, seed=3).score([collate(queries)], [collate(texts)]).values
    assert scores.shape == (2, 3) and len(np.unique(scores)) == 6 and (scores >= 0).all() and (scores < 1).all()
    again = build_scorer("random", None, stages[0], seed=3)
    assert np.array_equal(again.score(alone(queries[::-1]), alone(texts[::-1])).values, scores)
    fewer = again.score(alone(queries[:1]), alone(texts[1:]))
    assert np.array_equal(fewer.values, scores[:1, 1:])
    assert not np.array_equal(build_scorer("random", *stages).score(alone(queries), alone(texts)).values, scores)
    with pytest.raises(MsifError, match="it has seed"):
        build_scorer("random", *stages, normalize="unit")
