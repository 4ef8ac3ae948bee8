"""What a scoring run will take: counted as it is done, with no vector of a query and nothing of the factors' size."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from helpers import Allocated, Products, documents, tiny_lm, track_modules

from msif.attribution.damping import Damping
from msif.attribution.estimate import ScoringPlan, describe_scoring
from msif.attribution.gradients import Side
from msif.attribution.inverses import IHVP
from msif.attribution.methods import INDEXED, INFLUENCES, METHODS, SOLVERS, STAGED
from msif.attribution.projection import Projection
from msif.attribution.stages import FittedStage, build_scorer
from msif.curvature import probe
from msif.data.documents import collate
from msif.data.sample import Plan
from msif.models.capture import Capture, Consumer
from msif.models.check import check_once
from msif.models.objectives import CausalLM

QUERIES, LENGTH = 30, 40
OPTIONS = {
    "multi-stage": {},
    "unit": {"normalize": "unit"},
    "rank": {"query_rank": 1},
    "cka": {},
    "cka whole": {"rows": "whole"},
    "trak": {"projection": Projection(6, 6, dimension=50)},
    "trak by example": {"projection": Projection(6, 6, dimension=50), "weighting": "example"},
    "logra": {"projection": Projection(4, 4)},
}


def stages_of(modules, **changes):
    """Wide enough that what is done to parameters outweighs what is done to a few tokens."""
    sizes = {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 256, "max_position_embeddings": 64}
    result = []
    for seed in (0, 1):
        model = tiny_lm(seed, dtype=torch.float32, **sizes, **changes)
        side = Side(model, track_modules(model, modules), CausalLM())
        check_once(model, side.tracked, side.objective, collate(documents([20] * 2)))  # which is not counted
        result.append(FittedStage(side, batches=[collate(documents([20] * 3, seed=6))]))
    return result


@pytest.fixture(scope="module")
def stages():
    return stages_of("layers")


def scorer_of(name, stages):
    method = {"unit": "gdp", "rank": "gdp", "multi-stage": "gdp"}.get(name, name.split()[0])
    return build_scorer(method, *stages, Damping(0.05), **OPTIONS.get(name, {}))


def numbers(value):
    """Of a scorer's vectors, in float32."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size() / 4
    parts = value.values() if isinstance(value, dict) else vars(value).values()
    return sum(numbers(part) for part in parts if part is not None)


def multiply_adds(work):
    with Products() as counter:
        work()
    return counter.count


CASES = [("layers", False), ("everything", False), ("everything", True), ("embed_in", False), ("lm_head", True)]


@pytest.mark.parametrize(
    ("modules", "tied", "name"),
    # CKA is not defined over a table's rows
    [(*case, name) for case in CASES for name in OPTIONS if name != "cka" or case in CASES[:3]],
)
def test_vectors_and_products_are_counted_as_they_are(modules, tied, name):
    """Also of a vocabulary so large that its tables outweigh all else, and of a table alone, tied and not."""
    scorer = scorer_of(name, stages_of(modules, vocab_size=500, tie_word_embeddings=tied))
    cost = scorer.cost()
    vectors = scorer.query_vectors([collate(documents([6] * QUERIES, seed=4))])
    held = numbers(vectors) / QUERIES
    assert cost.vector == held <= cost.making
    batch, side = collate(documents([LENGTH] * 3, seed=5)), scorer.candidate_side

    def passed(cotangent):
        with Capture(side.model, side.tracked, Consumer()) as capture:
            capture.run(side.objective, batch, [cotangent])

    done = multiply_adds(lambda: scorer.score_vectors(vectors, [batch])) - multiply_adds(
        lambda: passed(cost.candidates)
    )
    work = cost.batch(3, LENGTH, QUERIES)
    assert 0.9 * done <= work.multiply_adds + work.double <= 1.5 * done and work.elements > 0
    if cost.index is None:
        return
    done = multiply_adds(lambda: scorer._kernel_of([batch])) - multiply_adds(lambda: passed(cost.index))
    work = cost.index_batch(3, LENGTH)
    assert 0.9 * done < work.multiply_adds + work.double < 1.1 * done
    assert cost.solve.double > 0


def asked(documents, **changes):
    plan = Plan(Counter((1, len(document)) for document in documents), 2, 2 * len(documents), 0.0, documents)
    return ScoringPlan(**{"queries": 3, "tokens": 9, "steps": 5, "shown": 12, "candidates": plan, **changes})


@pytest.mark.parametrize("method", [name for name in METHODS if name not in INDEXED])
def test_no_vector_is_made_and_one_small_batch_is_run(stages, monkeypatch, method):
    outputs, tokens = CausalLM.outputs, []

    def counted(self, model, batch):
        tokens.append(batch.input_ids.numel())
        return outputs(self, model, batch)

    monkeypatch.setattr(CausalLM, "outputs", counted)
    given = stages if method not in STAGED else [replace(s, factors={}, tau={}) for s in stages]
    scorer = build_scorer(method, *given, Damping(0.05))
    question = asked(documents([20] * 50))
    question = replace(question, index=question.candidates if method in ("trak", "logra") else None)
    with Allocated(scorer.candidate_side.model) as made:
        told = describe_scoring(scorer, question, [])
    assert 2 * made.largest < 64 * 256
    assert tokens[:3] == [probe.FEW] * 3 and len(tokens) == 5
    assert tokens[3] == tokens[4] <= probe.SHARE * question.candidates.tokens
    assert "for 100 candidates, after preselection" in told and "for the vectors of 3 queries" in told
    assert ("for 100 sequences of index data" in told) == (method in ("trak", "logra"))
    assert ("to explain 12 documents" in told) == (method in INFLUENCES)


def seconds(told, line):
    """Of a line of the estimate."""
    units = {"s": 1, "min": 60, "h": 3600}
    words = next(text for text in told.splitlines() if line in text).split("about ")[1].split()
    return sum(float(words[place]) * units[words[place + 1]] for place in (0, 2) if words[place + 1] in units)


@pytest.mark.parametrize("kind", SOLVERS)
def test_a_solver_takes_its_products(stages, monkeypatch, kind):
    fixed = probe.Line(0.0, 1e-2)
    speed = probe.Speed({}, 11.0, 1e-3, fixed, fixed, {"candidates": fixed}, 1e-12, 1e-12, 1e-12, 0.0, 1e-9, 200.0)
    monkeypatch.setattr("msif.attribution.estimate.measure", lambda *_: speed)
    scorer = scorer_of("multi-stage", stages)
    one = asked(documents([20] * 50))
    told = [
        describe_scoring(scorer, replace(one, stages=[one.candidates] * n, ihvp=IHVP(kind, iterations)), [])
        for n, iterations in ((0, 20), (1, 20), (2, 20), (2, 40))
    ]
    assert "at most" not in told[0] and all("at most" in text for text in told[1:])
    none, single, double, longer = (seconds(text, "for the vectors") for text in told)
    assert double - none == pytest.approx(2 * (single - none), rel=0.1)
    products = {"cg": 20, "ekfac-cg": 21, "arnoldi": 20 / 3}.get(kind, 20 / 100)  # of three queries
    assert single - none >= 3 * products * 2 * 0.02 * one.candidates.tokens
    assert longer > 1.3 * double


@pytest.mark.parametrize("kind", SOLVERS)
def test_a_solver_solves_at_every_half_and_for_what_moves_them(stages, monkeypatch, kind):
    fixed = probe.Line(0.0, 1e-2)
    speed = probe.Speed({}, 11.0, 1e-3, fixed, fixed, {"candidates": fixed}, 1e-12, 1e-12, 1e-12, 0.0, 1e-9, 200.0)
    monkeypatch.setattr("msif.attribution.estimate.measure", lambda *_: speed)
    given = [replace(stage, factors={}, tau={}) for stage in stages]
    plain, near = (build_scorer("multi-stage", *given, Damping(0.05), **o) for o in ({}, {"halves": 4}))
    one = asked(documents([20] * 50))
    solved = replace(one, stages=[one.candidates] * 2, ihvp=IHVP(kind, 40))
    moving = replace(one, queries=4, stages=[one.candidates], ihvp=IHVP(kind, 40))  # as if they were questions
    cost = {
        name: seconds(describe_scoring(scorer, plan, []), "for the vectors")
        - seconds(describe_scoring(scorer, replace(plan, stages=[]), []), "for the vectors")
        for name, scorer, plan in (
            ("once", plain, solved),
            ("near", near, replace(solved, once=[one.candidates])),
            ("moving", plain, moving),
        )
    }
    assert cost["near"] == pytest.approx(4 * cost["once"] + cost["moving"], rel=0.05)
