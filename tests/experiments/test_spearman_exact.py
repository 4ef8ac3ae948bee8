"""The estimators on a model of a thousand parameters, against exact answers: one H, one λ, and the text apart."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from micro import MICRO

from experiments.spearman import direct, text, truth
from experiments.spearman.bench import Bench, Cost
from experiments.spearman.configuration import NATURAL, RELATIVE
from experiments.spearman.dense import flat, matrix
from experiments.spearman.iterative import arnoldi, cg, preconditioned_cg
from experiments.spearman.world import make_world
from msif.curvature.arnoldi import top_eigenpairs
from msif.curvature.ggn import GGN


@pytest.fixture(scope="module")
def bench(done, corpus):
    name, training, test = text.read_text(str(corpus), "")
    return Bench(make_world(done, (name, training, test), MICRO, 0), MICRO, done, 0, "cpu")


def near(a, b, tolerance):
    assert np.linalg.norm(a - b) < tolerance * np.linalg.norm(b)


def test_h_column_by_column_is_the_ggn(bench):
    H = matrix(bench)
    side = bench.side_of(bench.world.model, torch.float64)
    source = torch.Generator().manual_seed(0)
    v = {module.name: torch.randn(3, *module.shape, dtype=torch.float64, generator=source) for module in side.tracked}
    product = flat(GGN(side.model, side.tracked, side.objective, bench.world.solving).matvec(v)).numpy()
    near(flat(v).numpy() @ H, product, 1e-10)
    near(H, H.T, 1e-10)
    assert np.linalg.eigvalsh(H)[0] > -1e-10 * np.linalg.eigvalsh(H)[-1]


@pytest.mark.parametrize("damping", ["1e-2", RELATIVE])
def test_the_dense_truth_is_that_of_preconditioned_cg(bench, damping):
    (dense,) = truth.truth(bench, damping)
    c = replace(MICRO, dense_parts=0, truth_tolerance=1e-5)
    (solved,) = truth.truth(Bench(bench.world, c, bench.output, 0, "cpu"), damping)
    assert dense.budget is None and max(dense.residual) < 1e-9
    assert solved.budget > 0 and max(solved.residual) < 2e-5
    near(solved.scores, dense.scores, 1e-3)


def test_exact_groups_invert_what_lies_within_them(bench):
    H = torch.from_numpy(matrix(bench)).clone()
    H.diagonal().add_(1e-2)
    b = flat(bench.gradients).double()
    found = {point.method: point.scores for point in truth.exact_groups(bench, "1e-2")}
    G = flat(bench.candidate_gradients).double()
    start, x = 0, torch.zeros_like(b)
    for module in bench.side.tracked:
        end = start + module.shape[0] * module.shape[1]
        x[:, start:end] = torch.linalg.solve(H[start:end, start:end], b[:, start:end].T).T
        start = end
    near(found["exact modules"], (x @ G.T).numpy(), 1e-6)
    # with one layer, a layer is everything
    near(found["exact layers"], truth.truth(bench, "1e-2")[0].scores, 1e-6)


def test_curves_start_at_ek_fac_and_end_at_the_truth(bench):
    c = replace(MICRO, truth_tolerance=1e-3, long_preconditioned=(0, 2, 5000), long_cg=(2, 5000))
    longer = Bench(bench.world, c, bench.output, 0, "cpu")
    (exact,), (factored, _) = truth.truth(bench, "1e-2"), direct.ekfac(bench, "1e-2")
    for method in (cg, preconditioned_cg):
        curve = method(longer, "1e-2")
        # met the tolerance before its last budget
        assert curve[-1].budget not in (2, 5000) and max(curve[-1].residual) < 2e-3
        near(curve[-1].scores, exact.scores, 0.05)
        assert [point.query for point in curve] == sorted(point.query for point in curve)
        extra = 1 if method is preconditioned_cg else 0
        assert curve[-1].passes == curve[-1].budget + extra
        if extra:
            assert (curve[0].budget, curve[0].passes) == (0, 0)
            near(curve[0].scores, factored.scores, 1e-6)
            assert curve[0].residual == pytest.approx(factored.residual)
    # another set of sequences has another H
    assert min(curve[-1].held_out_residual) > 10 * max(curve[-1].residual)


def test_arnoldi_of_all_eigenvectors_is_the_truth(bench):
    H = matrix(bench)
    # rounding errors of null eigenvalues are not a question of this test
    lifted, size = Dense(torch.from_numpy((H + H.T) / 2 + 1e-3 * np.eye(len(H)))), len(H)
    found = top_eigenpairs(lifted, bench.gradients, top=size, iterations=size)
    every = Bench(bench.world, bench.c, bench.output, 0, "cpu")
    every.__dict__["eigenpairs"] = (replace(found, values=found.values - 1e-3), Cost(1.0, None))
    (exact,) = truth.truth(bench, "1e-2")
    for one in arnoldi(every, "1e-2"):
        near(one.scores, exact.scores, 1e-3)
        assert (one.overhead, one.overhead_passes, one.passes) == (1.0, size, 0.0)


@dataclass
class Dense:
    """A matrix as an operator."""

    H: torch.Tensor

    def matvec(self, vectors):
        products = flat(vectors).double() @ self.H
        parts = products.split([V[0].numel() for V in vectors.values()], dim=1)
        return {name: part.view_as(V).to(V.dtype) for (name, V), part in zip(vectors.items(), parts, strict=True)}


def test_lambda_is_the_same_for_all_methods(bench, monkeypatch):
    sizes = {module.name: module.shape[0] * module.shape[1] for module in bench.side.tracked}
    shift = bench.shift(RELATIVE)
    for name, factors in bench.factors.items():
        assert torch.allclose(shift[name], 0.1 * factors.Lambda.mean((1, 2)))
    # blocks of a module have as many parameters
    total = sum(shift[name].mean().item() * size for name, size in sizes.items())
    assert bench.mean_shift(RELATIVE) == pytest.approx(total / sum(sizes.values()))
    assert bench.mean_shift("1e-2") == 0.01 and all((value > 0).all() for value in bench.shift(NATURAL).values())
    given = []

    class Spy(direct.TRAKScorer):
        def __init__(self, *args, **options):
            given.append(options["damping"])
            super().__init__(*args, **options)

    monkeypatch.setattr(direct, "TRAKScorer", Spy)
    direct.trak(bench, "1e-2")
    # λ of a mean over tokens, where TRAK's kernel is a sum: 16 sequences of 7 predictions
    assert given == pytest.approx([0.01 * 16 * 7] * 3)


def test_queries_candidates_and_held_out_text_are_apart(bench):
    world = bench.world

    def rows(batches):
        return [tuple(row) for batch in batches for row in batch.input_ids.tolist()]

    training = {tuple(document.input_ids.tolist()) for document in world.training}
    assert {*rows(world.solving), *rows(world.candidates)} <= training
    assert not {*rows(world.queries)} & {*rows(world.held_out)}
    assert (len(rows(world.queries)), len(rows(world.candidates))) == (MICRO.queries, MICRO.candidates)
    assert len(rows(world.solving)) == len(rows(world.held_out)) == MICRO.solving
    assert bench.supervised == MICRO.solving * (MICRO.length - 1)
